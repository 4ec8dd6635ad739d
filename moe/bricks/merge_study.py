"""What merging costs: two parents that continue one expert, each on half of some rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moe.bricks.fit import fit_expert
from moe.bricks.measuring import remeasured
from moe.bricks.merge import METHODS, Method, healing_fit, merged_experts
from moe.bricks.states import encode_rows
from moe.bricks.update import UPDATE, copied_model
from moe.checkpoint import Bundle
from moe.data.formats import Example
from moe.data.prepare import read_task
from moe.data.tables import TaskTable, build_table
from moe.types import InputError, TaskSpec

SHOWN = ("accuracy", "in_scope_accuracy", "in_scope_at_oos80", "f1", "exact_match")


@dataclass(frozen=True, kw_only=True)
class Halves:
    """Rows of a task for a study.

    Attributes:
        spec: The task, as the model has it.
        parents: Two halves of training rows.
        validation: Rows to measure on, which thresholds are fitted on, too.
    """

    spec: TaskSpec
    parents: tuple[TaskTable, TaskTable]
    validation: TaskTable


def read_halves(bundle: Bundle, task: str, root: str | None, rows: int, validation: int) -> Halves:
    """Two times `rows` training rows and some validation rows of a task, drawn with seed 0.

    Raises:
        InputError: The task is unknown, has several experts, or its rows cannot be read; or a
            number is below 1.
    """
    for option, count in (("--rows", rows), ("--validation", validation)):
        if count < 1:
            raise InputError(f"{option} {count}: expected at least 1")
    number, spec = _single(bundle, task)
    config, cache = bundle.config, Path(bundle.config.data.cache)
    place = config.data.root if root is None else root
    read = read_task(task, config.tasks[task], place, config.seed_everything)
    train = _drawn(read.train, 2 * rows)

    def table(chosen: Sequence[Example]) -> TaskTable:
        return build_table(list(chosen), spec, number, bundle.tokenizer, cache)

    return Halves(
        spec=spec,
        parents=(table(train[::2]), table(train[1::2])),
        validation=table(_drawn(read.validation, validation)),
    )


def _single(bundle: Bundle, name: str) -> tuple[int, TaskSpec]:
    for number, spec in enumerate(bundle.model.tasks):
        if spec.name == name and spec.num_experts == 1:
            return number, spec
    known = [spec.name for spec in bundle.model.tasks if spec.num_experts == 1]
    raise InputError(f"--task {name!r}: no task with a single expert; those are {known}")


def _drawn(rows: Sequence[Example], count: int) -> list[Example]:
    order = np.random.default_rng(0).permutation(len(rows))[:count]
    return [rows[i] for i in order]


def merge_study(
    bundle: Bundle,
    halves: Halves,
    healing_steps: int,
    methods: Sequence[Method] = METHODS,
    say: Callable[[str], None] = print,
) -> dict[str, dict[str, float]]:
    """Metrics, through the learned gate, of the expert as trained, both parents and their merges.

    Fisher information and healing are of the first half, as with `bricks.py merge --train`.

    Args:
        bundle: A trained model; also the base of `task-arithmetic` and `ties`.
        halves: Of one of its tasks.
        healing_steps: Optimizer steps after merging.
        methods: Of merging.
        say: Told each result at once.
    """
    task, expert = halves.spec.name, halves.spec.expert_names[0]
    healing = healing_fit(healing_steps) if healing_steps else None
    encoded = [encode_rows(bundle, table) for table in halves.parents]
    found: dict[str, dict[str, float]] = {}

    def measure(name: str, model: Bundle) -> None:
        after = remeasured(model, halves.validation, bundle.config.tasks[task])
        metrics = after.metrics["tasks"][task]
        found[name] = {key: float(metrics[key]) for key in SHOWN if key in metrics}
        say(f"{name}: {', '.join(f'{key} {value:.4g}' for key, value in found[name].items())}")

    def copied() -> tuple[Bundle, Any]:
        after = copied_model(bundle)
        return after, after.model.experts[expert]

    measure("as trained", bundle)
    parents: list[Any] = []
    for seed, rows in enumerate(encoded):
        parent, module = copied()
        fit_expert(module, rows, bundle.tokenizer, replace(UPDATE, seed=seed))
        measure(f"parent {seed + 1}", parent)
        parents.append(module)
    base = bundle.model.experts[expert].state_dict()
    for method in methods:
        merged, module = copied()
        both = parents[0], parents[1]
        weights = merged_experts(both, method, base, encoded[0], bundle.tokenizer)
        module.load_state_dict(weights)
        measure(method, merged)
        if healing is not None:
            fit_expert(module, encoded[0], bundle.tokenizer, healing)
            measure(f"{method}, healed", merged)
    return found
