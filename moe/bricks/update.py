"""Retraining one expert on new rows; every other tensor stays as it is."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np

from moe.bricks.fit import FitConfig, fit_expert
from moe.bricks.history import Changed, record
from moe.bricks.measuring import remeasured
from moe.bricks.rows import read_rows
from moe.bricks.states import encode_rows
from moe.bricks.tasks import find_expert, fresh_expert
from moe.checkpoint import Bundle
from moe.config import OptimizerConfig, TaskConfig

UPDATE = FitConfig(epochs=3, optimizer=OptimizerConfig(expert_lr=1e-4))


def update(
    bundle: Bundle,
    *,
    expert: str,
    config: TaskConfig,
    root: str = ".",
    fit: FitConfig = UPDATE,
    fresh: bool = False,
) -> Changed:
    """Trains one expert further, from its weights.

    Temperature and thresholds are fitted again only if validation rows are given: the thresholds
    belong to the task, which other experts may share.

    Args:
        bundle: A trained model.
        expert: Its name.
        config: Sources of the rows, with the task's labels.
        root: Folder of relative sources.
        fit: How it is trained.
        fresh: Whether to draw its weights anew first, from `fit.seed`.

    Raises:
        InputError: There is no such expert, or the rows are malformed or of other labels.
    """
    task = find_expert(bundle, expert)
    rows = read_rows(bundle, task.name, replace(config, type=task.type), root=root, spec=task)
    after = copied_model(bundle)
    module: Any = after.model.experts[expert]
    if fresh:
        draw_anew(after, expert, fit.seed)
    losses = fit_expert(module, encode_rows(bundle, rows.train), bundle.tokenizer, fit)
    table = replace(rows.validation, spec=task)
    after = remeasured(after, table, None if config.validation is None else rows.config)
    note = f"{expert}: {len(losses)} steps, loss {losses[0]:.3f} -> {np.mean(losses[-20:]):.3f}"
    return record(
        bundle,
        after,
        operation="update",
        about={"expert": expert, "steps": len(losses), "fresh": fresh},
        data=rows.origin,
        notes=(rows.line, note),
    )


def copied_model(bundle: Bundle) -> Bundle:
    """The bundle with experts and gate of its own; the encoder is shared."""
    model, encoder = bundle.model, bundle.model.encoder
    copied = copy.deepcopy(model, {id(encoder): encoder})
    return replace(bundle, model=copied)


def draw_anew(bundle: Bundle, expert: str, seed: int) -> None:
    """Gives an expert the weights that a fresh model with this seed would have, in place."""
    state = fresh_expert(bundle, expert, seed).state_dict()
    bundle.model.experts[expert].load_state_dict(state)
