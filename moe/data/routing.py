"""Rows that say where a request belongs.

They teach the gate the forms in which a task is asked that its own rows lack (a review phrased as a
question, an intent with a passage attached), texts that need two answers, and they hold texts that
fit no task. One JSON object a line: `{"text": ..., "context": ..., "tasks": ["qa"]}`, and if wanted
a `category` to report by; `tasks` is empty where none fits. Where it holds answers too, a label
under the name of its task or a piece of the context under `answer`, experts learn them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe.data.augment import add_noise
from moe.data.formats import Answer, Example, Place, Split
from moe.data.sources import read_json_lines
from moe.data.text import normalise_text, replace_surrogates
from moe.data.windows import TextTokenizer, Window, make_windows
from moe.forms import FORMS
from moe.types import InputError, TaskSpec

ANSWER = "answer"  # field of a span task's answer; a label's is the name of its task
HELD_OUT = 4  # one in so many rows is not trained on: thresholds are fitted on it


@dataclass(frozen=True, kw_only=True)
class RoutingRow:
    """A request with the tasks that should answer it.

    Attributes:
        text: Normalised.
        context: The passage, or None.
        tasks: Names, the most wanted first; empty where no task fits.
        category: What kind of case it is, to report by.
        answers: What is known of the answers: labels by task, and a span's text as `answer`.
    """

    text: str
    context: str | None
    tasks: tuple[str, ...]
    category: str = ""
    answers: Mapping[str, str] = field(default_factory=dict)


def read_routing_rows(
    source: str, *, root: Path, split: Split, tasks: Sequence[str]
) -> list[RoutingRow]:
    """The rows of a JSON-lines SOURCE.

    Args:
        source: A file, or `sample:routing`.
        root: Folder of relative files.
        split: Which part of the sample.
        tasks: Names that a row may use; a row that names another is left out, so that a file
            serves models with fewer tasks.

    Raises:
        InputError: With file, line, field and value.
    """
    table = read_json_lines(source, root=root, split=split)
    read = [_row(place, values) for place, values in table.rows]
    kept = [row for row in read if set(row.tasks) <= set(tasks)]
    if not kept:
        raise InputError(f"{source}: no row for the tasks {sorted(tasks)}, expected at least one")
    return kept


def _row(place: Place, values: Any) -> RoutingRow:
    text, context, tasks = values.get("text"), values.get("context"), values.get("tasks")
    if not isinstance(text, str) or not normalise_text(text):
        raise place.error("text", text, "a string that is not empty")
    if context is not None and (not isinstance(context, str) or not normalise_text(context)):
        raise place.error("context", context, "a passage or null")
    if not isinstance(tasks, list) or not all(isinstance(name, str) for name in tasks):
        raise place.error("tasks", tasks, "a list of task names, empty where none fits")
    context = None if context is None else replace_surrogates(context)
    answers = {name: values[name] for name in (*tasks, ANSWER) if values.get(name) is not None}
    for name, answer in answers.items():
        if not isinstance(answer, str):
            raise place.error(name, answer, "a string, or null where the answer is not known")
    if ANSWER in answers and answers[ANSWER] not in (context or ""):
        raise place.error(ANSWER, answers[ANSWER], "a piece of the context, word for word")
    return RoutingRow(
        text=normalise_text(text),
        context=context,
        tasks=tuple(dict.fromkeys(tasks)),
        category=str(values.get("category") or ""),
        answers=answers,
    )


def hold_out(rows: Sequence[RoutingRow]) -> tuple[list[RoutingRow], list[RoutingRow]]:
    """Rows to train on and rows to fit thresholds on; which is which depends on the text alone.

    Rows that fit no task are only for the fit: a gate that was trained on some kinds of them would
    look safe on these kinds and say nothing of others.
    """
    fitted = [not row.tasks or _held_out(row.text) for row in rows]
    train = [row for row, held in zip(rows, fitted, strict=True) if not held]
    return train, [row for row, held in zip(rows, fitted, strict=True) if held]


def _held_out(text: str) -> bool:
    return hashlib.sha256(text.encode()).digest()[0] % HELD_OUT == 0


class RoutingTable:
    """Tokenized routing rows, read like a `TaskTable`; few enough to stay in memory.

    Args:
        rows: At least one.
        tasks: Names of the model's tasks in its order.
        tokenizer: The encoder's.
        specs: The tasks themselves, where experts learn the answers that rows hold.
    """

    task = -1  # none of its own

    def __init__(
        self,
        rows: Sequence[RoutingRow],
        tasks: Sequence[str],
        tokenizer: TextTokenizer,
        specs: Sequence[TaskSpec] = (),
    ) -> None:
        self.rows = tuple(rows)
        texts = tokenizer.encode([row.text for row in rows])
        noised = tokenizer.encode([add_noise(row.text) for row in rows])
        contexts = tokenizer.encode([row.context or "" for row in rows])
        self._records: list[dict[str, Any]] = [
            {
                "text_ids": text_ids,
                "noised_ids": noised_ids,
                "context_ids": context_ids,
                "context": row.context,
                "label": -1,
                "span": (-1, -1),
                "targets": tuple(tasks.index(name) for name in row.tasks),
                **_answers(row, specs, tokenizer, offsets),
            }
            for row, (text_ids, _), (noised_ids, _), (context_ids, offsets) in zip(
                rows, texts, noised, contexts, strict=True
            )
        ]

    @property
    def num_answered(self) -> int:
        """Rows of which experts learn."""
        return sum(bool(record["answered"]) for record in self._records)

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self, column: str) -> NDArray[np.int64]:
        """Tokens of each row (rows,) in `text_ids`, `noised_ids` or `context_ids`."""
        return np.array([len(record[column]) for record in self._records], dtype=np.int64)

    def read(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """The rows in that order."""
        return [self._records[row] for row in rows]

    def windows(self, row: dict[str, Any], *, max_length: int, stride: int) -> list[Window]:
        """All windows of one record of `read`, for evaluation."""
        context_ids = row["context_ids"] if row["context"] is not None else None
        return make_windows(row["text_ids"], context_ids, max_length=max_length, stride=stride)


def _answers(
    row: RoutingRow, specs: Sequence[TaskSpec], tokenizer: TextTokenizer, offsets: Any
) -> dict[str, Any]:
    """What experts can learn of a row: one label and one span at most, the first of each.

    A label that its task lacks is left out: one file serves models with other labels.
    """
    found: dict[str, Any] = {}
    answered = []
    for number, spec in enumerate(specs):
        example = _example(row, spec)
        if example is None:
            continue
        encoded = FORMS[spec.type].encode(example, spec, tokenizer, offsets)
        column = "span" if spec.type == "span" else "label"
        if column not in found:
            found[column] = encoded[column]
            answered.append(number)
    return {"answered": tuple(answered), **found}


def _example(row: RoutingRow, spec: TaskSpec) -> Example | None:
    """The row as one of a task, or None without an answer to it."""
    if spec.name not in row.tasks:
        return None
    if spec.type == "span" and ANSWER in row.answers and row.context is not None:
        text = row.answers[ANSWER]
        answer = Answer(text=text, start=row.context.index(text))
        return Example(text=row.text, context=row.context, answers=(answer,))
    label = row.answers.get(spec.name)
    if spec.type == "classifier" and label in (*spec.labels, spec.out_of_scope) and label:
        return Example(text=row.text, context=row.context, label=label)
    return None
