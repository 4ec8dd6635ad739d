"""The loss of an optimizer step, over its micro-batches and over the ranks that share its rows.

Dimensions: B rows of a micro-batch, E experts, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moe.losses import GateSums, balance_loss, gate_sums, routing_loss, z_loss
from moe.model import Mixture
from moe.model_config import LossConfig
from moe.ranks import sum_over_ranks
from moe.types import Batch, MixtureOutput

Terms = dict[str, Tensor]  # what there is to log of some rows, as sums


@dataclass(frozen=True, kw_only=True)
class GroupLoss:
    """What micro-batches that are encoded together add to the step's loss.

    Attributes:
        rows: Of this rank's rows; the ranks' values and gradients add up.
        balance: Of the rows so far of all ranks: the same value on each, with the gradient of this
            rank's rows. A step that is encoded at once has one group, and then it is that of the
            whole step.
        sums: Over the rows so far of all ranks, without gradient.
    """

    rows: Tensor
    balance: Tensor
    sums: GateSums


class StepLoss(nn.Module):
    """Every rank's part of the loss; the parts' gradients add up to that of all rows at once.

    Args:
        weights: Coefficients of the terms.
        task_weights: Factor on the answer loss of each task.
    """

    task_weight_T: Tensor

    def __init__(self, weights: LossConfig, task_weights: Sequence[float]) -> None:
        super().__init__()
        self.weights = weights
        self.register_buffer("task_weight_T", torch.tensor(task_weights), persistent=False)

    def forward(
        self,
        model: Mixture,
        group: Sequence[Batch],
        rows_T: Tensor,
        earlier: GateSums | None,
        terms: list[Terms],
    ) -> GroupLoss:
        """What a group adds to the step's loss.

        Args:
            model: The mixture.
            group: This rank's micro-batches to encode together. Every rank comes here at the same
                time, perhaps with none.
            rows_T: (T,) rows of the whole step by task, on all ranks.
            earlier: Sums of the groups before.
            terms: What there is to log; that of these micro-batches is appended.
        """
        experts_TE = model.task_experts_TE
        loss, sums = experts_TE.new_zeros((), dtype=torch.float32), GateSums.zeros(experts_TE)
        outputs = model.forward_together(group) if group else []
        for batch, output in zip(group, outputs, strict=True):
            part, own, logged = self.micro_batch(model, batch, output)
            loss, sums = loss + part, sums + own
            terms.append(logged)
        sums = sums.over_ranks(sum_over_ranks)
        if earlier is not None:
            sums = earlier + sums
        switch, prior = self.weights.switch, self.weights.prior
        balance = balance_loss(sums, rows_T, experts_TE, switch=switch, prior=prior)
        return GroupLoss(rows=loss, balance=balance, sums=sums.detach())

    def micro_batch(
        self, model: Mixture, batch: Batch, output: MixtureOutput
    ) -> tuple[Tensor, GateSums, Terms]:
        """Loss of a micro-batch's rows as their part of the step's loss, its sums, terms to log."""
        weights, experts_TE = self.weights, model.task_experts_TE
        assert batch.step_rows_T is not None and batch.target_BT is not None
        answer_BT = model.answer_loss(output, batch)
        routing_B = routing_loss(output.routing.logits_BE, batch.target_BT, experts_TE)
        z_B = z_loss(output.routing.logits_BE)
        chosen_BE = model.inference_choice(output.routing)
        sums = gate_sums(output.routing, chosen_BE, batch.task_ids, experts_TE)
        # Not `@`, here and below: autocast would compute it in bfloat16.
        weighted_B = (answer_BT * self.task_weight_T).sum(1)
        row_B = weighted_B + weights.routing * routing_B + weights.z * z_B
        loss = row_B.sum() / batch.step_rows_T.sum()
        own_BT = model.own_tasks(batch).float()
        known_B = own_BT.sum(1)  # 0 for routing rows
        logged = {
            "answer_T": (answer_BT.detach() * own_BT).sum(0),
            "routing_T": (routing_B.detach()[:, None] * own_BT).sum(0),
            "routing_rows": (routing_B.detach() * (1 - known_B)).sum(),
            "num_routing_rows": (1 - known_B).sum(),
            "z": (z_B.detach() * known_B).sum(),
            "loss": loss.detach(),
        }
        return loss, sums, logged


def over_ranks(terms: Sequence[Terms], **own: Tensor) -> Terms:
    """Each term added up over micro-batches and ranks, in one exchange.

    Args:
        terms: Of this rank's micro-batches.
        own: Further tensors of this rank, of the same type.
    """
    total = {name: torch.stack([term[name] for term in terms]).sum(0) for name in terms[0]} | own
    every = sum_over_ranks(torch.cat([value.reshape(-1) for value in total.values()]))
    parts = every.split([value.numel() for value in total.values()])
    return {name: part.view_as(total[name]) for name, part in zip(total, parts, strict=True)}


def tokens_over_ranks(batches: Sequence[Batch]) -> tuple[int, int]:
    """Real tokens, and those processed with padding, of all ranks' micro-batches."""
    real_N = torch.stack([batch.attention_mask.sum() for batch in batches])
    with_padding = sum(batch.attention_mask.numel() for batch in batches)
    own = torch.stack([real_N.sum(), real_N.new_tensor(with_padding)])
    real, processed = sum_over_ranks(own).tolist()
    return real, processed
