"""The rows of a suite, read once for both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moe.data.augment import PERTURBATIONS
from moe.data.prepare import read_split
from moe.data.routing import RoutingRow, read_routing_rows
from moe.data.sources import Example
from moe.release.scores import Gold
from moe.release.suite import JudgedTask, Suite
from moe.types import InputError


@dataclass(frozen=True, kw_only=True)
class SuiteRows:
    """What both sides are asked.

    Attributes:
        tasks: Labelled rows by task.
        routing: Requests labelled with tasks alone.
    """

    tasks: dict[str, list[Gold]]
    routing: list[RoutingRow]


def read_rows(suite: Suite, root: str | None = None) -> SuiteRows:
    """The rows of a suite, at most `suite.rows` of each task, chosen by its seed.

    Args:
        suite: Which rows.
        root: Folder of relative sources instead of the suite's own.

    Raises:
        InputError: A source cannot be read, or a suite has no row of a kind that it judges.
    """
    folder = root or suite.root
    tasks = {name: _task_rows(name, task, folder, suite) for name, task in suite.tasks.items()}
    routing: list[RoutingRow] = []
    if suite.routing is not None:
        names = list(suite.tasks)
        routing = read_routing_rows(suite.routing, root=Path(folder), split="test", tasks=names)
    return SuiteRows(tasks=tasks, routing=routing)


def _task_rows(name: str, task: JudgedTask, root: str, suite: Suite) -> list[Gold]:
    examples = read_split(name, task.config, task.rows, root, task.split)
    gold = [_gold(example, task) for example in examples]
    inside, outside = [g for g in gold if g.inside], [g for g in gold if not g.inside]
    if not inside or (task.out_of_scope is not None and not outside):
        raise InputError(
            f"task {name}: {task.rows} has {len(inside)} rows inside and {len(outside)} out of "
            f"scope (out_of_scope: {task.out_of_scope}), expected some of each that is judged"
        )
    return [*some(inside, suite.rows, suite.seed), *some(outside, suite.rows, suite.seed)]


def _gold(example: Example, task: JudgedTask) -> Gold:
    label = example.label
    if label is not None and task.labels and label not in task.labels and label.isdecimal():
        if int(label) >= len(task.labels):
            raise InputError(
                f"label {label!r} of {example.text[:60]!r} is no number of {task.labels}"
            )
        label = task.labels[int(label)]
    outside = label is not None and label == task.out_of_scope
    return Gold(
        text=example.text,
        context=example.context,
        label=None if outside else label,
        spans=tuple(answer.text for answer in example.answers),
        inside=not outside,
    )


def some(rows: Sequence[Gold], most: int | None, seed: int) -> list[Gold]:
    """At most so many of the rows, at random, in their order."""
    if most is None or len(rows) <= most:
        return [*rows]
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:most])
    return [rows[i] for i in chosen]


def perturbed(rows: Sequence[Gold], kind: str, suite: Suite) -> list[Gold]:
    """The rows that are asked under a perturbation, which changes the text and no passage."""
    change = PERTURBATIONS[kind]
    inside = some([row for row in rows if row.inside], suite.perturbed_rows, suite.seed)
    outside = some([row for row in rows if not row.inside], suite.perturbed_rows, suite.seed)
    return [replace(row, text=change(row.text)) for row in (*inside, *outside)]
