"""A new expert on a trained model: for a new task, or for a new domain of a task that it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe.abstain import Vectors
from moe.bricks.fit import FitConfig, fit_expert
from moe.bricks.history import Changed, record
from moe.bricks.measuring import collect_here, measured, refit
from moe.bricks.memory import remember, with_memory
from moe.bricks.rows import NewRows, check_new_name, read_rows
from moe.bricks.scorer import BrickData, BrickFit, fit_brick
from moe.bricks.states import encode_rows
from moe.bricks.tasks import (
    find_task,
    free_name,
    fresh_expert,
    listed,
    rebuild,
    replace_task,
    with_experts,
    with_task_config,
)
from moe.checkpoint import Bundle
from moe.config import OptimizerConfig, TaskConfig
from moe.data.tables import TaskTable
from moe.encoder import early_layers, word_layer
from moe.types import BrickSpec, ExpertSpec, TaskSpec

# With less dropout a few thousand rows are learned by heart (docs/bricks.md).
GROW = FitConfig(
    epochs=12, optimizer=OptimizerConfig(expert_lr=8e-4), dropout=0.2, state_dropout=0.2
)
WIDTH = 0.75  # of the encoder's feed-forward: trunk, head and brick are then below one layer


def grow(
    bundle: Bundle,
    *,
    task: str,
    config: TaskConfig,
    root: str = ".",
    also: bool = False,
    fit: FitConfig = GROW,
    old_root: str | None = None,
) -> Changed:
    """Trains a new expert with the encoder and all old experts as they are.

    Args:
        bundle: A trained model.
        task: Name of the new task, or with `also` of one that the model has.
        config: Type and sources of the rows; of a task that the model has, its type.
        root: Folder of relative sources.
        also: Whether the expert joins a task that the model has.
        fit: How the expert is trained.
        old_root: Folder of the old training data, for a checkpoint that remembers none of it.

    Raises:
        InputError: The name is taken or unknown, or the rows are malformed.
    """
    if also:
        old = find_task(bundle, task, "--also-for")
        rows = read_rows(bundle, task, replace(config, type=old.type), root=root, spec=old)
    else:
        check_new_name(bundle, task)
        rows = read_rows(bundle, task, config, root=root)
    spec = rows.spec if also else added_shape(bundle, rows.spec)
    start = with_memory(bundle, old_root)
    encoded = encode_rows(start, replace(rows.train, spec=spec))
    wide_NP, classes_N = encoded.wide_rows(), rows.train.labels()
    brick = brick_data(start, task, wide_NP, classes_N)
    grown, name = with_untrained(start, spec, brick, fit.seed)
    expert: Any = grown.model.experts[name]
    losses = fit_expert(expert, encoded, grown.tokenizer, fit)
    routed = fit_brick(grown.model.gate.bricks[name], brick, fit.seed)  # type: ignore[arg-type]
    grown = _kept_and_measured(grown, rows, wide_NP, also)
    notes = [rows.line, *_notes(grown, name, losses, routed)]
    return record(
        bundle,
        grown,
        operation="grow",
        about={"expert": name, "task": task, "type": rows.spec.type, "also": also},
        data=rows.origin,
        notes=tuple(notes),
    )


def added_shape(bundle: Bundle, task: TaskSpec) -> TaskSpec:
    """A new task with the form of its experts.

    Their trunk is smaller than an encoder layer. A tagger reads an early layer: the last one of a
    trained model has forgotten much of what single words are (`docs/bricks.md`).
    """
    encoder = bundle.model.encoder
    width = int(WIDTH * encoder.config.hidden_dim)
    layer = word_layer(encoder) if task.type == "tagger" else None
    return replace(task, trunk="transformer", trunk_width=width, layer=layer)


def with_untrained(
    bundle: Bundle, spec: TaskSpec, data: BrickData, seed: int
) -> tuple[Bundle, str]:
    """The bundle with an untrained expert and its gate brick, and the expert's name."""
    name = free_name(bundle, spec.name)
    expert = ExpertSpec(name=name, bricks=(brick_spec(bundle, name, data),))
    tasks = listed(bundle.model.tasks)
    known = {task.name: task for task in tasks}
    if spec.name in known:
        old = known[spec.name]
        changed = with_experts(old, [*old.experts, expert])
    else:
        changed = with_experts(spec, [expert])
    grown = replace(bundle, model=rebuild(bundle, replace_task(tasks, changed), seed))
    start = fresh_expert(grown, name, seed).state_dict()
    grown.model.experts[name].load_state_dict(start)
    return grown, name


def brick_data(
    bundle: Bundle, task: str, wide_NP: Vectors, classes_N: NDArray[np.int64]
) -> BrickData:
    """What the gate brick of an added expert is fitted on.

    Args:
        bundle: With a memory.
        task: The expert's: other rows of it may go to the expert, too.
        wide_NP: What gate and bricks read of the expert's rows.
        classes_N: Their classes, all alike where the task has none.
    """
    tasks = [spec.name for spec in bundle.model.tasks if spec.name != task]
    limited = [name for name in tasks if name in bundle.memory]
    start = bundle.model.gate.dim
    others = {name: rows_XP[:, start:] for name, rows_XP in bundle.memory.items()}
    return BrickData(own_XP=wide_NP[:, start:], classes_X=classes_N, others=others, limited=limited)


def brick_spec(bundle: Bundle, name: str, data: BrickData) -> BrickSpec:
    """A brick of the sizes of its data, after all that the gate has."""
    known = [b.order for e in bundle.model.gate.experts for b in e.bricks]
    return BrickSpec(
        name=name,
        order=max(known, default=-1) + 1,
        layers=len(early_layers(bundle.model.encoder)),
        own=data.num_own(),
        others=data.num_others(),
    )


def _kept_and_measured(bundle: Bundle, rows: NewRows, wide_NP: Vectors, also: bool) -> Bundle:
    """With exemplars of a new task, its fitted numbers and metrics; an old one keeps its own."""
    name = rows.spec.name
    table = _with_spec(rows.validation, bundle)
    said = collect_here(bundle, table)
    if not also:
        bundle = with_task_config(bundle, name, rows.config)
        bundle = remember(bundle, name, wide_NP, said.pooled_ND)
        return measured(refit(bundle, table, rows.config, said), table, said)
    fresh = refit(bundle, table, rows.config, said).calibration
    added = bundle.model.tasks[table.task].expert_names[-1]
    return replace(bundle, calibration=bundle.calibration.with_experts(fresh, {added: added}))


def _with_spec(table: TaskTable, bundle: Bundle) -> TaskTable:
    """The table with the task as the grown model has it."""
    return replace(table, spec=bundle.model.tasks[table.task])


def _notes(bundle: Bundle, name: str, losses: Sequence[float], fit: BrickFit) -> list[str]:
    parts = (bundle.model.experts[name], bundle.model.gate.bricks[name])
    size = sum(p.numel() for part in parts for p in part.parameters())
    layer = sum(p.numel() for p in bundle.model.encoder.transformer.layer[0].parameters())
    moved = ", ".join(f"{task} {share:.2%}" for task, share in fit.moved.items())
    last = float(np.mean(losses[-20:]))
    return [
        f"{name}: {size:,} new parameters, {size / layer:.2f} of an encoder layer; "
        f"{len(losses)} steps, last loss {last:.3f}",
        f"remembered rows that would move to {name}: {moved}; of its own rows, each "
        f"left out of the fit in turn, {fit.kept:.1%} reach it",
    ]
