"""What merging costs: two parents that continue one expert, each on half of some rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moe.bricks.fit import FitConfig, fit_expert
from moe.bricks.measuring import collect_here, measured, refit
from moe.bricks.merge import METHODS, Method, fisher_information, merged_weights
from moe.bricks.states import EncodedRows, encode_rows
from moe.bricks.update import UPDATE, copied_model
from moe.checkpoint import Bundle
from moe.data.formats import Example
from moe.data.prepare import read_task
from moe.data.tables import TaskTable, build_table
from moe.experts import Expert
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
    expert = halves.spec.expert_names[0]
    encoded = [encode_rows(bundle, table) for table in halves.parents]
    found: dict[str, dict[str, float]] = {}

    def measure(name: str, model: Bundle) -> None:
        table = halves.validation
        said = collect_here(model, table)
        fitted = refit(model, table, bundle.config.tasks[halves.spec.name], said)
        metrics = measured(fitted, table, said).metrics["tasks"][halves.spec.name]
        found[name] = {key: float(metrics[key]) for key in SHOWN if key in metrics}
        say(f"{name}: {', '.join(f'{key} {value:.4g}' for key, value in found[name].items())}")

    measure("as trained", bundle)
    parents = [_continued(bundle, expert, rows, seed) for seed, rows in enumerate(encoded)]
    for number, parent in enumerate(parents, 1):
        measure(f"parent {number}", parent)
    for method in methods:
        merged = _merged(bundle, parents, expert, method, encoded[0])
        measure(method, merged)
        if healing_steps:
            _train(merged, expert, encoded[0], replace(UPDATE, steps=healing_steps))
            measure(f"{method}, healed", merged)
    return found


def _expert(bundle: Bundle, name: str) -> Expert:
    module: Any = bundle.model.experts[name]
    return module  # type: ignore[no-any-return]


def _continued(bundle: Bundle, expert: str, rows: EncodedRows, seed: int) -> Bundle:
    after = copied_model(bundle)
    _train(after, expert, rows, replace(UPDATE, seed=seed))
    return after


def _train(bundle: Bundle, expert: str, rows: EncodedRows, fit: FitConfig) -> None:
    fit_expert(_expert(bundle, expert), rows, bundle.tokenizer, fit)


def _merged(
    bundle: Bundle, parents: Sequence[Bundle], expert: str, method: Method, rows: EncodedRows
) -> Bundle:
    modules = [_expert(parent, expert) for parent in parents]
    one, two = (module.state_dict() for module in modules)
    fisher = None
    if method == "fisher":
        first, second = (fisher_information(m, rows, bundle.tokenizer) for m in modules)
        fisher = (first, second)
    base = _expert(bundle, expert).state_dict()
    after = copied_model(bundle)
    _expert(after, expert).load_state_dict(merged_weights((one, two), method, base, fisher))
    return after
