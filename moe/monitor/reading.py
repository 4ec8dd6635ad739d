"""Telemetry parts, read as profiles.

Dimensions: N requests.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe.profile import Profile, join_profiles
from moe.types import InputError, TaskSpec


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Requests that a model routed, in the order of their answers.

    Attributes:
        model: Its hash.
        time_N: When each was answered, microseconds since 1970.
        profile: The requests.
        others: Requests of other models, which are left out.
        named: Requests that named their tasks, which are left out: no gate chose them.
    """

    model: str
    time_N: NDArray[np.int64]
    profile: Profile
    others: int = 0
    named: int = 0


def read_traffic(
    folder: str | Path, specs: Sequence[TaskSpec], model: str | None = None
) -> Traffic:
    """The requests of one model in a folder of parts.

    Args:
        folder: Of `TelemetryWriter`.
        specs: The tasks of the model.
        model: Hash; None takes the model that answered last.

    Raises:
        InputError: There is no part, one cannot be read, or one is of a model with other experts.
    """
    parts = [_read(path) for path in sorted(Path(folder).glob("part-*.parquet"))]
    if not parts:
        raise InputError(
            f"--telemetry {folder}: no part-*.parquet there: does the server write it?"
        )
    parts.sort(key=lambda part: part["time"].min())
    chosen = model if model is not None else parts[-1]["hash"]
    mine = [part for part in parts if part["hash"] == chosen]
    if not mine:
        known = sorted({part["hash"] for part in parts})
        raise InputError(f"--model {chosen}: no request of it in {folder}, models are {known}")
    experts = [name for spec in specs for name in spec.expert_names]
    for part in mine:
        if part["names"] != experts:
            raise InputError(
                f"{part['path']}: written by a model with the experts {part['names']}, the "
                f"checkpoint has {experts}: give the checkpoint that was served"
            )
    times = np.concatenate([part["time"][~part["named"]] for part in mine])
    profile = join_profiles(_alike([_profile(part, specs, experts) for part in mine]))
    order = np.argsort(times, kind="stable")
    return Traffic(
        model=chosen,
        time_N=times[order],
        profile=profile.rows(order),
        others=sum(len(part["time"]) for part in parts) - sum(len(part["time"]) for part in mine),
        named=int(sum(part["named"].sum() for part in mine)),
    )


def _read(path: Path) -> dict[str, Any]:
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        metadata = table.schema.metadata or {}
        part = {name: table[name].combine_chunks() for name in table.column_names}
        return {
            "path": path,
            "hash": metadata[b"model"].decode(),
            "names": json.loads(metadata[b"experts"]),
            "time": part["time"].to_numpy(zero_copy_only=False).astype(np.int64),
            "named": part["named"].to_numpy(zero_copy_only=False).astype(bool),
            "columns": part,
        }
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: cannot be read as telemetry ({' '.join(str(error).split())[:120]}): remove it"
        ) from error


def _profile(part: dict[str, Any], specs: Sequence[TaskSpec], experts: list[str]) -> Profile:
    columns, kept = part["columns"], np.flatnonzero(~part["named"])
    task_number = {spec.name: number for number, spec in enumerate(specs)}
    expert_number = {name: number for number, name in enumerate(experts)}
    count = len(part["named"])
    nan_N = np.full(count, np.nan, dtype=np.float32)  # of parts that older versions wrote
    embedding_ND = np.zeros((count, 0), dtype=np.float16)
    if "embedding" in columns:
        embedding_ND = columns["embedding"].flatten().to_numpy().reshape(count, -1)
    tasks, chosen = columns["tasks"].to_pylist(), columns["experts"].to_pylist()
    whole = Profile(
        task_N=np.array([task_number[names[0]] for names in tasks], dtype=np.int16),
        expert_N=np.array([expert_number[names[0]] for names in chosen], dtype=np.int16),
        abstained_N=_numbers(columns["abstained"]) > 0,
        out_of_scope_N=_flags(columns["out_of_scope"]),
        no_answer_N=_flags(columns["no_answer"]),
        confidence_N=_numbers(columns["confidence"]),
        strangeness_N=_numbers(columns["strangeness"]),
        fragmentation_N=_numbers(columns["fragmentation"]) if "fragmentation" in columns else nan_N,
        embedding_MD=embedding_ND,
    )
    return whole.rows(kept)


def _alike(parts: list[Profile]) -> list[Profile]:
    """Without embeddings unless every part has them."""
    if len({part.embedding_MD.shape[1] for part in parts}) == 1:
        return parts
    return [replace(part, embedding_MD=part.embedding_MD[:, :0]) for part in parts]


def _numbers(column: Any) -> NDArray[np.float32]:
    values: NDArray[np.float32] = column.to_numpy(zero_copy_only=False).astype(np.float32)
    return values


def _flags(column: Any) -> NDArray[np.int8]:
    """-1 where there is none."""
    values = [-1 if value is None else int(value) for value in column.to_pylist()]
    return np.array(values, dtype=np.int8)
