"""What telemetry keeps of one answered request: numbers and names, no text.

Dimensions: E experts, D width of the pooled embedding.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One answered request.

    Attributes:
        time: When it was answered, seconds since 1970.
        model: Hash of the model, empty if unknown.
        experts: Names of all experts of the model, in the gate's order.
        probabilities: (E,) of the gate.
        tasks: The chosen tasks, the most probable first.
        chosen: The chosen experts.
        named: Whether the request named its tasks.
        abstained: Whether the gate found no task that fits.
        out_of_scope: Whether the first task rejected it; None of a task that rejects nothing.
        no_answer: Whether a span task found nothing; None of other tasks.
        confidence: Score of the first task's answer in [0, 1]; None if it abstained or rejected.
        strangeness: What decides on abstaining: similarity to texts of no task minus that to the
            best task's (a task that was added counts if the gate chose it). None without a fitted
            reference.
        fragmentation: How finely the words of its text break into tokens.
        tokens: Of all its windows.
        characters: Of its text and passage.
        latency: Milliseconds from its arrival to its answer.
        embedding: (D,) float16 what the gate read; None if it is not kept.
    """

    time: float
    model: str
    experts: tuple[str, ...]
    probabilities: tuple[float, ...]
    tasks: tuple[str, ...]
    chosen: tuple[str, ...]
    named: bool
    abstained: bool
    out_of_scope: bool | None
    no_answer: bool | None
    confidence: float | None
    strangeness: float | None
    fragmentation: float
    tokens: int
    characters: int
    latency: float
    embedding: NDArray[np.float16] | None = None


def row_of(
    answer: Mapping[str, Any],
    *,
    named: bool,
    tokens: int,
    characters: int,
    latency: float,
    model: str = "",
    now: float | None = None,
) -> Row:
    """The row of an answer that was given with `explain`.

    Args:
        answer: With its `explanation`.
        named: Whether the request named its tasks.
        tokens: Of all its windows.
        characters: Of its text and passage.
        latency: In milliseconds.
        model: Hash of the model.
        now: Seconds since 1970; None takes the clock.
    """
    explanation, routing = answer["explanation"], answer["routing"]
    first = answer["answers"].get(routing[0]["task"], {})
    answered = bool(first) and not first.get("out_of_scope")
    return Row(
        time=time.time() if now is None else now,
        model=model,
        experts=tuple(explanation["probabilities"]),
        probabilities=tuple(explanation["probabilities"].values()),
        tasks=tuple(entry["task"] for entry in routing),
        chosen=tuple(expert["name"] for entry in routing for expert in entry["experts"]),
        named=named,
        abstained=answer["abstained"],
        out_of_scope=first.get("out_of_scope"),
        no_answer=first.get("no_answer"),
        confidence=first.get("score") if answered else None,
        strangeness=explanation["strangeness"],
        fragmentation=explanation["fragmentation"],
        tokens=tokens,
        characters=characters,
        latency=latency,
        embedding=explanation.get("embedding"),
    )


def part_table(rows: Sequence[Row]) -> Any:
    """Rows of one model as an Arrow table; the names of its experts are in the metadata."""
    import pyarrow as pa

    first, texts = rows[0], pa.list_(pa.string())
    times = [datetime.fromtimestamp(row.time, UTC) for row in rows]
    columns = {
        "time": pa.array(times, pa.timestamp("us", "UTC")),
        "model": pa.array([row.model for row in rows], pa.string()).dictionary_encode(),
        "probabilities": pa.FixedSizeListArray.from_arrays(
            pa.array(np.array([row.probabilities for row in rows], dtype=np.float32).reshape(-1)),
            len(first.experts),
        ),
        "tasks": pa.array([row.tasks for row in rows], texts),
        "experts": pa.array([row.chosen for row in rows], texts),
        "latency_ms": pa.array([row.latency for row in rows], pa.float32()),
    }
    for name in ("named", "abstained", "out_of_scope", "no_answer"):
        columns[name] = pa.array([getattr(row, name) for row in rows], pa.bool_())
    for name in ("confidence", "strangeness", "fragmentation"):
        columns[name] = pa.array([getattr(row, name) for row in rows], pa.float32())
    for name in ("tokens", "characters"):
        columns[name] = pa.array([getattr(row, name) for row in rows], pa.int32())
    if first.embedding is not None:
        embedded = np.stack([row.embedding for row in rows if row.embedding is not None])
        columns["embedding"] = pa.FixedSizeListArray.from_arrays(
            pa.array(embedded.astype(np.float16).reshape(-1)), embedded.shape[1]
        )
    metadata = {"model": first.model, "experts": json.dumps(first.experts)}
    return pa.table(columns).replace_schema_metadata(metadata)
