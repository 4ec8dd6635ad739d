"""An expert from another checkpoint that shares the encoder, with its weights as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from moe.bricks.grow import brick_data, with_untrained
from moe.bricks.history import Changed, record
from moe.bricks.memory import remember, with_memory
from moe.bricks.merge import check_same_encoder
from moe.bricks.scorer import fit_brick
from moe.bricks.tasks import find_expert, with_task_config
from moe.checkpoint import Bundle
from moe.types import InputError, TaskSpec


def bring(bundle: Bundle, *, expert: str, other: Bundle, old_root: str | None = None) -> Changed:
    """The model with an expert of another checkpoint: of a new task, or of one that it has.

    Its place on the gate is fitted anew, on the rows of the task that the other one remembers:
    here it may have other neighbours.

    Args:
        bundle: A trained model.
        expert: Its name in `other`.
        other: With the same encoder.
        old_root: Folder of the old training data, for checkpoints that remember none of it.

    Raises:
        InputError: The encoders differ, or the tasks do.
    """
    spec = find_expert(other, expert, "--experts")
    check_same_encoder(bundle, other)
    mine = {task.name: task for task in bundle.model.tasks}.get(spec.name)
    if mine is not None and _shape(mine) != _shape(spec):
        raise InputError(
            f"--experts {expert}: the task {spec.name!r} has {len(spec.labels)} labels there and "
            f"{len(mine.labels)} here, or another trunk: remove it here first"
        )
    start, other = with_memory(bundle, old_root), with_memory(other, old_root)
    if spec.name not in other.memory:
        raise InputError(f"--from: it remembers no rows of {spec.name!r}: grow the task instead")
    rows_XP = other.memory[spec.name]
    data = brick_data(start, spec.name, rows_XP, np.zeros(len(rows_XP), dtype=np.int64))
    shape = replace(spec, experts=(), trunk=spec.trunk or other.config.model.expert.trunk)
    after, name = with_untrained(start, shape, data, seed=0)
    module: Any = after.model.experts[name]
    module.load_state_dict(other.model.experts[expert].state_dict())
    brick: Any = after.model.gate.bricks[name]
    fit = fit_brick(brick, data)
    if mine is None:
        after = with_task_config(after, spec.name, other.config.tasks[spec.name])
        after = remember(after, spec.name, rows_XP, rows_XP[:, : after.model.gate.dim])
    after = _with_fitted(after, other, spec, {expert: name}, new=mine is None)
    moved = ", ".join(f"{task} {share:.2%}" for task, share in fit.moved.items())
    return record(
        bundle,
        after,
        operation="merge",
        about={"experts": [expert], "from_other": True, "as": name},
        notes=(
            f"{name}: {expert} of the other checkpoint; remembered rows that would move to it: "
            f"{moved}; {fit.kept:.1%} of its own reach it",
        ),
    )


def _shape(task: TaskSpec) -> tuple[Any, ...]:
    return task.type, task.labels, task.out_of_scope, task.trunk, task.trunk_width, task.layer


def _with_fitted(
    bundle: Bundle, other: Bundle, task: TaskSpec, names: dict[str, str], *, new: bool
) -> Bundle:
    """With what is fitted for the expert and, of a new task, its thresholds and metrics."""
    ours, theirs = bundle.calibration, other.calibration

    def joined(name: str) -> dict[str, float]:
        found = getattr(theirs, name)
        added = {task.name: found[task.name]} if new and task.name in found else {}
        return {**getattr(ours, name), **added}

    calibration = replace(
        ours.with_experts(theirs, names),
        out_of_scope=joined("out_of_scope"),
        no_answer=joined("no_answer"),
    )
    metrics, known = {**bundle.metrics}, other.metrics.get("tasks", {})
    if new and task.name in known:
        metrics["tasks"] = {**metrics.get("tasks", {}), task.name: known[task.name]}
    return replace(bundle, calibration=calibration, metrics=metrics)
