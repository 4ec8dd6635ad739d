"""From a config to clean, tokenized tables: read, clean, name the labels, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from moe.config import DataConfig, TaskConfig
from moe.data.cleaning import CleaningReport, clean
from moe.data.routing import RoutingTable, hold_out, read_routing_rows
from moe.data.sources import Columns, Example, read_source
from moe.data.tables import TaskTable, build_table
from moe.data.windows import TextTokenizer
from moe.forms import FORMS
from moe.types import InputError, TaskSpec

UNUSUAL = "routing rows"  # with a space, so that no task has the name
EXEMPLAR_TOKENS = 40_000  # of each task: some 4,000 short texts, or 250 with a passage
MAX_EXEMPLARS = 4_000


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """Clean rows of one task.

    Attributes:
        spec: What the model must know of the task.
        train: Training rows.
        validation: Validation rows.
        report: What cleaning dropped.
    """

    spec: TaskSpec
    train: list[Example]
    validation: list[Example]
    report: CleaningReport


def read_split(
    name: str,
    task: TaskConfig,
    source: str,
    root: str,
    split: Literal["train", "validation", "test"],
) -> list[Example]:
    """Rows of one source of a task; an error names the task."""
    columns = Columns(text=task.text, context=task.context, label=task.label)
    try:
        return read_source(source, root=Path(root), split=split, type=task.type, columns=columns)
    except InputError as error:
        raise InputError(f"task {name}: {error}") from error


def read_task(name: str, task: TaskConfig, root: str, seed: int) -> TaskData:
    """Reads and cleans the training and validation rows of a task."""
    form = FORMS[task.type]
    train = read_split(name, task, task.train, root, "train")
    validation = None
    if task.validation is not None:
        validation = read_split(name, task, task.validation, root, "validation")
    try:
        train, validation, report = clean(
            train, validation, by=form.GROUP_BY, seed=seed, min_words=task.min_words
        )
    except InputError as error:
        raise InputError(f"task {name}: {error}") from error
    spec = form.build_spec(name, task, train)
    return TaskData(spec=spec, train=train, validation=validation, report=report)


def describe(data: TaskData) -> str:
    """One line for the table printed before training: rows, classes, what was dropped."""
    detail = FORMS[data.spec.type].describe(data.spec, data.train)
    return f"{data.spec.name}: {data.report}; {detail}"


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Tokenized rows of all tasks, in the model's order of tasks.

    Attributes:
        specs: The tasks.
        train, validation: One table per task.
        routing_train, routing_validation: Routing rows to train on and to fit on; None without.
        exemplars: What requests are compared with, by task: some of its training rows; and the
            routing rows that are trained on. Empty if no routing row is without a task.
    """

    specs: tuple[TaskSpec, ...]
    train: tuple[TaskTable, ...]
    validation: tuple[TaskTable, ...]
    routing_train: RoutingTable | None = None
    routing_validation: RoutingTable | None = None
    exemplars: dict[str, TaskTable | RoutingTable] = field(default_factory=dict)


def build_tables(
    tasks: dict[str, TaskConfig], data: DataConfig, tokenizer: TextTokenizer, seed: int
) -> tuple[Tables, list[str]]:
    """Tables of every task and of the routing rows, and one line of counts for each."""
    read = [read_task(name, task, data.root, seed) for name, task in tasks.items()]
    cache = Path(data.cache)
    specs = tuple(task.spec for task in read)
    (routing_train, routing_held), routing_line = _routing_tables(specs, data, tokenizer)
    train = tuple(
        build_table(task.train, task.spec, i, tokenizer, cache) for i, task in enumerate(read)
    )
    strangers = routing_held is not None and any(not row.tasks for row in routing_held.rows)
    tables = Tables(
        specs=specs,
        train=train,
        validation=tuple(
            build_table(task.validation, task.spec, i, tokenizer, cache)
            for i, task in enumerate(read)
        ),
        routing_train=routing_train,
        routing_validation=routing_held,
        exemplars=_exemplars(train, routing_train, seed) if strangers else {},
    )
    return tables, [*(describe(task) for task in read), *routing_line]


def _exemplars(
    tables: Sequence[TaskTable], routing: RoutingTable | None, seed: int
) -> dict[str, TaskTable | RoutingTable]:
    chosen: dict[str, TaskTable | RoutingTable] = {
        table.spec.name: some_rows(table, seed) for table in tables
    }
    if routing is not None:  # unusual forms of a task's requests are not strangers
        chosen[UNUSUAL] = routing
    return chosen


def some_rows(table: TaskTable, seed: int) -> TaskTable:
    """A random part of a table, about as many tokens of each task: a passage costs a pass too."""
    order = np.random.default_rng(seed).permutation(len(table))
    tokens = (table.lengths("text_ids") + table.lengths("context_ids"))[order]
    count = max(int(np.searchsorted(np.cumsum(tokens), EXEMPLAR_TOKENS)), 1)
    return replace(table, rows=table.rows.select(order[: min(count, MAX_EXEMPLARS)]))


def _routing_tables(
    specs: Sequence[TaskSpec], data: DataConfig, tokenizer: TextTokenizer
) -> tuple[tuple[RoutingTable | None, RoutingTable | None], list[str]]:
    if data.routing is None:
        return (None, None), []
    if len(specs) < 2:
        return (None, None), ["routing: not read, a single task leaves nothing to route"]
    root, names = Path(data.root), [spec.name for spec in specs]
    try:
        rows = read_routing_rows(data.routing, root=root, split="train", tasks=names)
    except InputError as error:
        raise InputError(f"data.routing: {error}") from error
    train, held = hold_out(rows)
    first = RoutingTable(train, names, tokenizer, specs) if train else None
    second = RoutingTable(held, names, tokenizer) if held else None
    answered = 0 if first is None else first.num_answered
    line = (
        f"routing: {len(train)} rows to train on, {answered} of them with answers, "
        f"{len(held)} to fit thresholds on"
    )
    return (first, second), [line]
