"""From the gate's logits to a decision: which tasks answer, by which experts, with which weights.

Dimensions: B windows, E experts, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from moe.types import Routing


def task_experts_matrix(task_sizes: Sequence[int]) -> Tensor:
    """(T, E) bool: which experts belong to which task, numbered task by task, so many each."""
    owner_E = torch.tensor([task for task, size in enumerate(task_sizes) for _ in range(size)])
    return owner_E[None, :] == torch.arange(len(task_sizes))[:, None]


def choose_tasks(
    task_mass_BT: Tensor, allowed_BT: Tensor | None, multi_task_threshold: float | None
) -> Tensor:
    """(B, T) bool: the allowed task with the largest mass and, with a threshold, those above it.

    Args:
        task_mass_BT: G_t, float32.
        allowed_BT: True at tasks that could answer, at least one per row; None is all.
        multi_task_threshold: In (0, 1), or None for exactly one task.
    """
    if allowed_BT is not None:
        task_mass_BT = task_mass_BT.where(allowed_BT, -1.0)
    tasks_BT = _is_best(task_mass_BT, 1)
    if multi_task_threshold is not None:
        tasks_BT = tasks_BT | (task_mass_BT > multi_task_threshold)
    return tasks_BT


def choose_experts(
    scores_BE: Tensor, tasks_BT: Tensor, task_experts_TE: Tensor, top_k: int
) -> Tensor:
    """(B, E) bool: the `top_k` best experts inside each chosen task (all, where it has fewer).

    Args:
        scores_BE: What to rank by.
        tasks_BT: (B, T) bool.
        task_experts_TE: (T, E) bool: which experts belong to which task.
        top_k: At least 1.
    """
    scores_BTE = scores_BE.unsqueeze(1).where(task_experts_TE, -torch.inf)
    # A task with fewer than `top_k` has others' experts among its best, too.
    best_BTE = _is_best(scores_BTE, top_k) & task_experts_TE
    return (best_BTE & tasks_BT.unsqueeze(2)).any(1)


def _is_best(values: Tensor, count: int) -> Tensor:
    """(..., N) bool: True at the `count` largest of the last dimension, at one of equal ones."""
    size = values.shape[-1]
    if count == 1:
        # Not `one_hot`, which waits for a GPU to look at the numbers.
        return values.argmax(-1, keepdim=True) == torch.arange(size, device=values.device)
    best = values.topk(min(count, size), -1).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter(-1, best, True)


def log_weights(log_g_BE: Tensor, chosen_BE: Tensor, task_experts_TE: Tensor) -> Tensor:
    """log w (B, E): log g renormalised over the chosen experts of each task, -inf elsewhere."""
    chosen_BTE = chosen_BE.unsqueeze(1) & task_experts_TE
    # Not -inf: the gradient of a logsumexp over nothing but -inf is NaN.
    lowest = torch.finfo(log_g_BE.dtype).min
    within_BTE = log_g_BE.unsqueeze(1).where(chosen_BTE, lowest).log_softmax(-1)
    return within_BTE.where(chosen_BTE, 0.0).sum(1).where(chosen_BE, -torch.inf)


def route(
    logits_BE: Tensor,
    task_experts_TE: Tensor,
    *,
    tasks_BT: Tensor | None = None,
    allowed_BT: Tensor | None = None,
    top_k: int,
    multi_task_threshold: float | None = None,
    selection_bias_E: Tensor | None = None,
) -> Routing:
    """From gate logits to a decision, the same in training and at inference.

    `g = softmax(logits)`, `G_t = sum_{e in E_t} g_e`; tasks are given or chosen by G_t, experts
    within a task by their logits; `w = g` renormalised over the chosen experts of a task. All
    tasks at once, in few operators: they cost more than the numbers in them.

    Args:
        logits_BE: (B, E) float32.
        task_experts_TE: (T, E) bool: which experts belong to which task.
        tasks_BT: (B, T) bool, the tasks where they are known; None lets the gate choose.
        allowed_BT: (B, T) bool, the tasks the gate may choose; None is all.
        top_k: Experts per chosen task.
        multi_task_threshold: See `choose_tasks`.
        selection_bias_E: (E,) added to the logits only to choose experts inside a task.
    """
    log_g_BE = logits_BE.log_softmax(-1)
    probabilities_BE = log_g_BE.exp()
    task_mass_BT = (probabilities_BE.unsqueeze(1) * task_experts_TE).sum(-1)
    if tasks_BT is None:
        tasks_BT = choose_tasks(task_mass_BT, allowed_BT, multi_task_threshold)
    scores_BE = logits_BE if selection_bias_E is None else logits_BE + selection_bias_E
    chosen_BE = choose_experts(scores_BE.detach(), tasks_BT, task_experts_TE, top_k)
    return Routing(
        logits_BE=logits_BE,
        probabilities_BE=probabilities_BE,
        task_mass_BT=task_mass_BT,
        tasks_BT=tasks_BT,
        chosen_BE=chosen_BE,
        log_weights_BE=(
            torch.zeros_like(log_g_BE).where(chosen_BE, -torch.inf)  # one alone has it all
            if top_k == 1
            else log_weights(log_g_BE, chosen_BE, task_experts_TE)
        ),
    )
