"""The terms of the joint loss: pure functions of tensors, one idea each.

Dimensions: B windows of a micro-batch, E experts, T tasks. Over the N rows of an optimizer step

    L = (1/N) sum_rows [c_t * answer + c_r * routing] + c_s * switch + c_p * prior + c_z * z
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from moe.types import Routing


def mixture_loss(log_weights_BE: Tensor, log_likelihood_BE: Tensor) -> Tensor:
    """Negative log-likelihood (...) in nats of the answer under the mixture of chosen experts.

    `-logsumexp_{e in S}(log w_e + log p_e(y|x))`, Jacobs et al. 1991, "Adaptive mixtures of local
    experts". Its gradient at the gate's logits inside S is `w_e - r_e`, r the responsibilities.

    Args:
        log_weights_BE: (..., E) log w, -inf outside S. At least one expert per row is finite.
        log_likelihood_BE: (..., E) log p_e(y|x), -inf at experts that did not run.
    """
    return -(log_weights_BE + log_likelihood_BE).logsumexp(-1)


def routing_loss(logits_BE: Tensor, target_BT: Tensor, task_experts_TE: Tensor) -> Tensor:
    """`-sum_t y_t log G_t` (B,) in nats, G_t the gate's mass on the experts of task t.

    A row of one task has `-log G_t`; one that needs two answers has its target split in equal
    shares, so that the gate holds both up.

    Args:
        logits_BE: Gate logits.
        target_BT: y, the wanted mass on each task.
        task_experts_TE: (T, E) bool.
    """
    of_task_BTE = logits_BE[:, None, :].masked_fill(~task_experts_TE, -torch.inf)
    log_mass_BT = of_task_BTE.logsumexp(-1) - logits_BE.logsumexp(-1, keepdim=True)
    return -(target_BT * log_mass_BT).sum(-1)


def z_loss(logits_BE: Tensor) -> Tensor:
    """Squared log-normaliser of the gate (B,): keeps logits small (arXiv 2202.08906, eq. 5)."""
    return logits_BE.logsumexp(-1).square()


@dataclass(frozen=True, kw_only=True)
class GateSums:
    """Sums over the rows of an optimizer step so far, from which load and balance follow.

    Balance over single-task micro-batches would teach mis-routing; over the step (the "global
    batch" of Qiu et al., arXiv 2501.11873) it does not. What was encoded earlier, and what other
    ranks have, enters detached.

    Attributes:
        chosen_E: (row, chosen expert) pairs.
        shares_E: Sum of `g_e / G_t` over the rows of the expert's own task.
        mass_T: Sum of G_t over all rows.
        rows_T: Rows by their own task.
    """

    chosen_E: Tensor
    shares_E: Tensor
    mass_T: Tensor
    rows_T: Tensor

    def __add__(self, other: GateSums) -> GateSums:
        return GateSums(
            chosen_E=self.chosen_E + other.chosen_E,
            shares_E=self.shares_E + other.shares_E,
            mass_T=self.mass_T + other.mass_T,
            rows_T=self.rows_T + other.rows_T,
        )

    def detach(self) -> GateSums:
        """The same sums without gradient."""
        return GateSums(
            chosen_E=self.chosen_E.detach(),
            shares_E=self.shares_E.detach(),
            mass_T=self.mass_T.detach(),
            rows_T=self.rows_T.detach(),
        )

    @classmethod
    def zeros(cls, task_experts_TE: Tensor) -> GateSums:
        """The sums over no row."""
        zero_T = task_experts_TE.new_zeros(task_experts_TE.shape[0], dtype=torch.float32)
        zero_E = task_experts_TE.new_zeros(task_experts_TE.shape[1], dtype=torch.float32)
        return cls(chosen_E=zero_E, shares_E=zero_E, mass_T=zero_T, rows_T=zero_T)

    def over_ranks(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> GateSums:
        """The sums over the rows of all ranks; the gradient is that of this rank's rows.

        Args:
            sum_over_ranks: Adds a tensor over the ranks, without gradient.
        """
        parts = (self.chosen_E, self.shares_E, self.mass_T, self.rows_T)
        values = sum_over_ranks(torch.cat(parts).detach())
        totals = values.split([len(part) for part in parts])
        # The difference is 0: it carries the gradient.
        sums = [total + (part - part.detach()) for total, part in zip(totals, parts, strict=True)]
        return GateSums(chosen_E=sums[0], shares_E=sums[1], mass_T=sums[2], rows_T=sums[3])


def gate_sums(
    routing: Routing, chosen_BE: Tensor, task_ids: Tensor, task_experts_TE: Tensor
) -> GateSums:
    """The sums of one micro-batch; `shares_E` and `mass_T` carry gradient.

    Args:
        routing: The gate's decision.
        chosen_BE: (B, E) bool, the experts that would run at inference. Not those that run in
            training: with all experts of a task running, their load is equal whatever the gate
            says, and the balance has no gradient.
        task_ids: (B,) int64 own task of each row; rows with -1 do not count.
        task_experts_TE: (T, E) bool.
    """
    known_B1 = (task_ids >= 0)[:, None]
    own_BE = task_experts_TE[task_ids] & known_B1
    # g_e / G_t as a softmax over the own task's logits: G_t itself can underflow to 0. Not -inf:
    # a softmax over nothing but -inf is NaN.
    lowest = torch.finfo(routing.logits_BE.dtype).min
    shares_BE = routing.logits_BE.masked_fill(~own_BE, lowest).softmax(-1)
    return GateSums(
        chosen_E=(chosen_BE & own_BE).sum(0).float(),
        shares_E=(shares_BE * known_B1).sum(0),
        mass_T=(routing.task_mass_BT * known_B1).sum(0),
        rows_T=(one_hot(task_ids.clamp_min(0), len(task_experts_TE)) * known_B1).sum(0).float(),
    )


def switch_balance(sums: GateSums, task_experts_TE: Tensor) -> Tensor:
    """Balance of each task (T,): `n_t * sum_e f_e P_e`, 1.0 = balanced, n_t = all to one expert.

    Fedus et al. 2021 (arXiv 2101.03961, eq. 4), inside a task and over its own rows: f_e is the
    share of (row, chosen expert) pairs, so it sums to 1 for any K (Mixtral's sums to K), and P_e
    the mean of `g_e / G_t`. 1.0 for a task without rows.
    """
    experts_TE = task_experts_TE.float()
    pairs_T1 = (experts_TE @ sums.chosen_E)[:, None].clamp_min(1.0)
    rows_T1 = sums.rows_T[:, None].clamp_min(1.0)
    load_TE = experts_TE * sums.chosen_E.detach() / pairs_T1.detach()
    share_TE = experts_TE * sums.shares_E / rows_T1
    balance_T = experts_TE.sum(1) * (load_TE * share_TE).sum(1)
    return torch.where(sums.rows_T > 0, balance_T, torch.ones_like(balance_T))


def prior_divergence(sums: GateSums) -> Tensor:
    """`KL(q || p)` in nats, q the share of each task's rows and p the gate's mean mass.

    Uniform load over tasks would be wrong: the right load is the traffic. 0 = the same shares.
    """
    rows = sums.rows_T.sum().clamp_min(1.0)  # a first micro-batch may hold routing rows alone
    q_T = sums.rows_T / rows
    p_T = (sums.mass_T / rows).clamp_min(1e-30)
    return (torch.special.xlogy(q_T, q_T) - q_T * p_T.log()).sum()


def balance_loss(
    sums: GateSums,
    step_rows_T: Tensor,
    task_experts_TE: Tensor,
    *,
    switch: float,
    prior: float,
) -> Tensor:
    """What rows that are encoded together add to the step's balance, so that gradients add up.

    With n rows so far, the gradient of a mean over them is 1/n per row; weighting by n/N makes it
    1/N for every row, as in one large batch. The switch term is the mean over the tasks that have
    several experts.

    Args:
        sums: Those of these rows with gradient, plus the earlier ones without.
        step_rows_T: (T,) rows of the whole optimizer step by task.
        task_experts_TE: (T, E) bool.
        switch: Coefficient of `switch_balance`.
        prior: Coefficient of `prior_divergence`.
    """
    seen_T = sums.rows_T / step_rows_T.clamp_min(1)
    shared_T = (task_experts_TE.sum(1) > 1) & (step_rows_T > 0)
    balance_T = switch_balance(sums, task_experts_TE) * seen_T * shared_T
    mean_balance = balance_T.sum() / shared_T.sum().clamp_min(1)
    seen = sums.rows_T.sum() / step_rows_T.sum()
    return switch * mean_balance + prior * seen * prior_divergence(sums)
