"""The gate's decision in numpy, for backends without torch; `moe.decision.route` is the original.

Dimensions: N requests, E experts, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe.decode import Floats, log_softmax

Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The gate's decision for each request.

    Attributes:
        probability_NE: g, softmax of the logits over all experts.
        mass_NT: G_t, the sum of g over the experts of task t.
        tasks_NT: True at the chosen tasks.
        weight_NE: w, g renormalised over the chosen experts of the same task; 0 at the others.
    """

    probability_NE: Floats
    mass_NT: Floats
    tasks_NT: Bools
    weight_NE: Floats


def decide(
    logits_NE: NDArray[np.float32],
    task_sizes: Sequence[int],
    *,
    named_NT: Bools,
    allowed_NT: Bools,
    top_k: int,
    multi_task_threshold: float | None,
    selection_bias_E: Floats,
) -> Decision:
    """From gate logits to a decision: see `moe.decision.route`.

    Args:
        logits_NE: The mean over the windows of each request.
        task_sizes: Number of experts of each task; experts are numbered task by task.
        named_NT: The tasks that a request names; without any the gate chooses.
        allowed_NT: The tasks that the gate may choose, at least one per request.
        top_k: Experts per chosen task.
        multi_task_threshold: A task above this mass is chosen too; None chooses one task.
        selection_bias_E: Added to the logits to rank experts inside a task.
    """
    exact_NE: Floats = logits_NE.astype(np.float64)
    edges = np.cumsum([0, *task_sizes])[:-1]
    g_NE: Floats = np.exp(log_softmax(exact_NE))
    mass_NT: Floats = np.add.reduceat(g_NE, edges, axis=1)
    tasks_NT = _choose_tasks(mass_NT, allowed_NT, multi_task_threshold)
    tasks_NT = np.where(named_NT.any(1, keepdims=True), named_NT, tasks_NT)
    chosen_NE = _choose_experts(exact_NE + selection_bias_E, tasks_NT, task_sizes, top_k)
    return Decision(
        probability_NE=g_NE,
        mass_NT=mass_NT,
        tasks_NT=tasks_NT,
        weight_NE=_weights(exact_NE, chosen_NE, task_sizes),
    )


def _choose_tasks(mass_NT: Floats, allowed_NT: Bools, threshold: float | None) -> Bools:
    mass_NT = np.where(allowed_NT, mass_NT, -1.0)
    tasks_NT = np.zeros_like(allowed_NT)
    tasks_NT[np.arange(len(mass_NT)), mass_NT.argmax(1)] = True
    return tasks_NT if threshold is None else tasks_NT | (mass_NT > threshold)


def _choose_experts(
    scores_NE: Floats, tasks_NT: Bools, task_sizes: Sequence[int], top_k: int
) -> Bools:
    blocks = []
    pieces = np.split(scores_NE, np.cumsum(task_sizes)[:-1], axis=1)
    for task, scores in enumerate(pieces):
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        block = np.zeros(scores.shape, dtype=bool)
        np.put_along_axis(block, best, tasks_NT[:, task, None], axis=1)
        blocks.append(block)
    return np.concatenate(blocks, axis=1)


def _weights(logits_NE: Floats, chosen_NE: Bools, task_sizes: Sequence[int]) -> Floats:
    """w (N, E): a softmax over the chosen experts of each task."""
    blocks = []
    pieces = np.split(np.where(chosen_NE, logits_NE, -np.inf), np.cumsum(task_sizes)[:-1], axis=1)
    for block in pieces:
        top = block.max(1, keepdims=True)
        shares = np.exp(block - np.where(np.isfinite(top), top, 0.0))
        blocks.append(shares / np.maximum(shares.sum(1, keepdims=True), 1e-30))
    return np.concatenate(blocks, axis=1)
