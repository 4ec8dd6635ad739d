"""Tokenized rows as memory-mapped Arrow, cached under the hash of their content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe.data.augment import add_noise
from moe.data.routing import RoutingTable
from moe.data.sources import Example
from moe.data.windows import TextTokenizer, Window, make_windows, window_starts
from moe.forms import FORMS
from moe.types import TaskSpec

_VERSION = 2
_CHUNK = 1000


def _rows(
    examples: Sequence[Example], spec: TaskSpec, tokenizer: TextTokenizer
) -> Iterator[dict[str, Any]]:
    for at in range(0, len(examples), _CHUNK):
        chunk = examples[at : at + _CHUNK]
        texts = tokenizer.encode([e.text for e in chunk])
        noised = tokenizer.encode([add_noise(e.text) for e in chunk])
        contexts = tokenizer.encode([e.context or "" for e in chunk])
        broken = tokenizer.fragmentation([e.text for e in chunk])
        for example, (text_ids, _), (noised_ids, _), (context_ids, offsets), fragmentation in zip(
            chunk, texts, noised, contexts, broken, strict=True
        ):
            yield {
                "text": example.text,
                "context": example.context,
                "answers": [],
                "label": -1,
                "span": (-1, -1),
                "text_ids": text_ids,
                "noised_ids": noised_ids,
                "context_ids": context_ids,
                "offsets": offsets.reshape(-1),
                "fragmentation": fragmentation,
                **FORMS[spec.type].encode(example, spec, tokenizer, offsets),
            }


def _content_hash(examples: Sequence[Example], spec: TaskSpec, tokenizer: TextTokenizer) -> str:
    digest = hashlib.sha256(f"{_VERSION} {spec} {tokenizer.to_json()}".encode())
    for example in examples:
        digest.update(json.dumps(asdict(example)).encode())
    return digest.hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class TaskTable:
    """The rows of one task and split.

    Attributes:
        spec: The task.
        task: Its number.
        rows: Arrow table with text, context, answers, label, span, token ids, fragmentation of the
            text (`TextTokenizer.fragmentation`), and what the task's form adds.
    """

    spec: TaskSpec
    task: int
    rows: Any

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self, column: str) -> NDArray[np.int64]:
        """Tokens of each row (rows,) in `text_ids`, `noised_ids` or `context_ids`."""
        table = self.rows.with_format("arrow")
        pieces = [np.diff(c.offsets.to_numpy()) for c in table[:][column].chunks]
        return np.concatenate(pieces).astype(np.int64)

    def labels(self) -> NDArray[np.int64]:
        """Class of each row (rows,), -1 where a row has none."""
        return np.array(self.rows.with_format("numpy")["label"][:], dtype=np.int64)

    def read(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """The rows in that order, token ids as numpy arrays."""
        columns = self.rows.with_format("arrow")[list(rows)].to_pandas()
        records: list[dict[str, Any]] = columns.to_dict("records")
        for record in records:
            if not isinstance(record["context"], str):  # pandas gives NaN for a missing string
                record["context"] = None
        return records

    def windows(self, row: dict[str, Any], *, max_length: int, stride: int) -> list[Window]:
        """All windows of one record of `read`, for evaluation."""
        context_ids = row["context_ids"] if row["context"] is not None else None
        return make_windows(row["text_ids"], context_ids, max_length=max_length, stride=stride)


def targets(record: Mapping[str, Any], length: int, *, noised: bool = False) -> dict[str, Any]:
    """What a record should be answered, as arguments of a `Window`.

    Args:
        record: Of `TaskTable.read`.
        length: Tokens of the text in the window.
        noised: Whether the window holds the noised text.
    """
    start, end = record["span"]
    tags = record.get("noised_tags" if noised else "tags")
    return {
        "label": int(record["label"]),
        "span": (int(start), int(end)),
        "tags": None if tags is None else tags[:length],
    }


def build_table(
    examples: Sequence[Example],
    spec: TaskSpec,
    task: int,
    tokenizer: TextTokenizer,
    cache: Path,
) -> TaskTable:
    """Tokenizes the rows, or opens what an earlier run tokenized.

    The folder is named by the hash of rows, task and tokenizer, and appears complete or not at all.
    """
    import datasets

    folder = cache / _content_hash(examples, spec, tokenizer)
    if not folder.exists():
        rows = list(_rows(examples, spec, tokenizer))
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        cache.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(cache)
        partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
        datasets.disable_progress_bars()
        datasets.Dataset.from_dict(columns, features=_features(columns)).save_to_disk(str(partial))
        try:
            partial.rename(folder)
        except OSError:  # another process was first
            shutil.rmtree(partial)
    return TaskTable(spec=spec, task=task, rows=datasets.load_from_disk(str(folder)))


def _remove_abandoned(cache: Path) -> None:
    """Removes what a killed process did not finish; an hour is longer than any table takes."""
    for partial in cache.glob("*.partial"):
        if time.time() - partial.stat().st_mtime > 3600:
            shutil.rmtree(partial, ignore_errors=True)


def _features(columns: Iterable[str]) -> Any:
    """Lists of integers, but for the few columns that are something else."""
    from datasets import Features, List, Value

    others = {
        "text": Value("string"),
        "context": Value("string"),
        "answers": List(Value("string")),
        "label": Value("int32"),
        "fragmentation": Value("float32"),
    }
    return Features({name: others.get(name, List(Value("int32"))) for name in columns})


@dataclass(frozen=True, kw_only=True)
class TrainingItems:
    """What training draws from: one item per window of each row of a task.

    Attributes:
        row: (items,) row of the table.
        first: (items,) first context token of the window.
        text: (items,) tokens of the text, cut to fit.
        noised: (items,) tokens of the text with noise, cut to fit.
        context: (items,) context tokens in the window, 0 without a context.
    """

    row: NDArray[np.int64]
    first: NDArray[np.int64]
    text: NDArray[np.int64]
    noised: NDArray[np.int64]
    context: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row)


def training_items(
    table: TaskTable | RoutingTable, *, max_length: int, stride: int
) -> TrainingItems:
    """Lists the windows of all rows by their lengths alone; no row is read."""
    items = []
    lengths = (table.lengths(name) for name in ("text_ids", "noised_ids", "context_ids"))
    for row, (text, noised, context) in enumerate(zip(*lengths, strict=True)):
        half = (max_length - 3) // 2 if context else max_length - 2
        starts = window_starts(text, context, max_length, stride) if context else [0]
        for first in starts:
            piece = min(context - first, max_length - 3 - min(text, half)) if context else 0
            room = max_length - 3 - piece if context else half
            items.append((row, first, min(text, half), min(noised, room), piece))
    columns = np.array(items, dtype=np.int64).T
    return TrainingItems(
        row=columns[0], first=columns[1], text=columns[2], noised=columns[3], context=columns[4]
    )
