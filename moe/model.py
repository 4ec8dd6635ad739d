"""The model on one screen: encode, gate, dispatch, experts.

Dimensions: B windows, L tokens, D encoder width, E experts, T tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DistilBertModel

from moe.decision import choose_experts, route, task_experts_matrix
from moe.dispatch import Assignment, dispatch_together
from moe.encoder import early_layers, encode_layers, pool, text_means
from moe.experts import Expert
from moe.fused import FusedLayers
from moe.gate import Gate
from moe.losses import mixture_loss
from moe.types import (
    Batch,
    ExpertOutput,
    MixtureOutput,
    Pooling,
    Routing,
    TaskSpec,
)


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """What the encoder makes of a batch.

    Attributes:
        hidden_BLD: Token states.
        layers: Those of every layer that something reads, by number.
        pooled_BD: What the gate reads, (B, D) or (B, 2D).
        early_BP: Means of the text in the first layers side by side, what bricks of the gate read;
            None if there are none.
    """

    hidden_BLD: Tensor
    layers: Mapping[int, Tensor]
    pooled_BD: Tensor
    early_BP: Tensor | None

    @property
    def wide_BP(self) -> Tensor:
        """Both side by side, float32: what a checkpoint remembers of a row."""
        assert self.early_BP is not None, "not asked for"
        return torch.cat([self.pooled_BD, self.early_BP], -1).float()


class Mixture(nn.Module):
    """A shared encoder, a gate, and sparse experts of several tasks.

    Args:
        encoder: The shared DistilBERT.
        gate: Scores all experts.
        experts: By name, in the gate's order.
        tasks: What the experts answer, in the same order.
        pooling: What the gate reads: see `moe.encoder.pool`.
        top_k: Experts per chosen task at inference.
        train_top_k: Experts per task in training; None is min(2, experts of the task).
        multi_task_threshold: A task above this mass is chosen too; None chooses one task.
        routing_reaches_encoder: Whether gradients of the gate flow into the encoder.
    """

    task_experts_TE: Tensor
    needs_no_context_T: Tensor

    def __init__(
        self,
        *,
        encoder: DistilBertModel,
        gate: Gate,
        experts: dict[str, Expert],
        tasks: Sequence[TaskSpec],
        pooling: Pooling = "both",
        top_k: int = 1,
        train_top_k: int | None = None,
        multi_task_threshold: float | None = None,
        routing_reaches_encoder: bool = True,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.gate = gate
        self.experts = nn.ModuleDict(experts)
        self.tasks = tuple(tasks)
        self.task_sizes = tuple(task.num_experts for task in tasks)
        last: int = encoder.config.n_layers
        self.reads_layer = tuple(task.layer or last for task in tasks for _ in task.expert_names)
        self.pooling = pooling
        self.top_k = top_k
        self.train_top_k = 2 if train_top_k is None else train_top_k
        self.multi_task_threshold = multi_task_threshold
        self.routing_reaches_encoder = routing_reaches_encoder
        matrix_TE = task_experts_matrix(self.task_sizes)
        self.register_buffer("task_experts_TE", matrix_TE, persistent=False)
        needs_no_context_T = torch.tensor([not task.needs_context for task in tasks])
        self.register_buffer("needs_no_context_T", needs_no_context_T, persistent=False)
        self.fused: FusedLayers | None = None  # set where the model only answers, on a CPU

    def forward(
        self, batch: Batch, *, tasks_BT: Tensor | None = None, allowed_BT: Tensor | None = None
    ) -> MixtureOutput:
        """Encodes once, routes, and runs the chosen experts on their rows only.

        Args:
            batch: B windows of L tokens.
            tasks_BT: (B, T) bool, the tasks where they are known; None lets the gate choose.
            allowed_BT: (B, T) bool, the tasks the gate may choose; None: all that need no
                context, and where there is a context all.
        """
        embedded = self.embed([batch])
        routing = self._routed(embedded[0], batch, tasks_BT, allowed_BT)
        return self._answered(embedded, [batch], [routing])[0]

    def forward_together(self, batches: Sequence[Batch]) -> list[MixtureOutput]:
        """Outputs of training batches, encoded together (`encode_together`)."""
        embedded = self.embed(batches)
        routings = [
            self._routed(own, batch, self.answered_tasks(batch), None)
            for own, batch in zip(embedded, batches, strict=True)
        ]
        return self._answered(embedded, batches, routings)

    def embed(
        self, batches: Sequence[Batch], *, early: bool = False, layer: int | None = None
    ) -> list[Embedded]:
        """The encoder's part for each batch.

        Args:
            batches: They are encoded together.
            early: Whether `early_BP` is wanted also if there are no bricks.
            layer: One that is wanted also if nothing reads it yet.
        """
        blocks = [(batch.input_ids, batch.attention_mask) for batch in batches]
        masks = [(batch.attention_mask, batch.context_mask) for batch in batches]
        last: int = self.encoder.config.n_layers
        early_ones = early_layers(self.encoder) if early or self.gate.bricks else range(0)
        wanted = {*self.read_layers, *early_ones, *([] if layer is None else [layer])}
        states = encode_layers(self.encoder, blocks, wanted, self.fused)
        return [
            Embedded(
                hidden_BLD=layers[last],
                layers=layers,
                pooled_BD=pool(layers[last], *mask, self.pooling),
                early_BP=text_means([layers[n] for n in early_ones], *mask) if early_ones else None,
            )
            for layers, mask in zip(states, masks, strict=True)
        ]

    @property
    def read_layers(self) -> tuple[int, ...]:
        """Numbers of the encoder's layers that gate, bricks or experts read; the last one first."""
        early = early_layers(self.encoder) if self.gate.bricks else ()
        last: int = self.encoder.config.n_layers
        return (last, *sorted({*self.reads_layer, *early} - {last}))

    def _answered(
        self, embedded: Sequence[Embedded], batches: Sequence[Batch], routings: Sequence[Routing]
    ) -> list[MixtureOutput]:
        """Runs the chosen experts on their rows of each batch."""
        assigned = dispatch_together([routing.chosen_BE for routing in routings])
        return [
            MixtureOutput(
                pooled_BD=own.pooled_BD,
                routing=routing,
                experts=tuple(self._expert_output(part, own, batch) for part in parts),
            )
            for own, batch, routing, parts in zip(
                embedded, batches, routings, assigned, strict=True
            )
        ]

    def _expert_output(
        self, assignment: Assignment, embedded: Embedded, batch: Batch
    ) -> ExpertOutput:
        expert, rows_N = assignment.expert, assignment.rows_N
        states_BLD = embedded.layers[self.reads_layer[expert]]
        inputs = [states_BLD, batch.attention_mask, batch.context_mask]
        if not assignment.is_whole:
            inputs = [tensor[rows_N] for tensor in inputs]
        logits = self.experts[self.expert_names[expert]](*inputs)
        return ExpertOutput(expert=expert, rows_N=rows_N, logits=logits)

    def _routed(
        self,
        embedded: Embedded,
        batch: Batch,
        tasks_BT: Tensor | None,
        allowed_BT: Tensor | None,
    ) -> Routing:
        pooled_BD = embedded.pooled_BD
        logits_BE = self.gate(
            pooled_BD if self.routing_reaches_encoder else pooled_BD.detach(),
            batch.request_ids,
            embedded.early_BP,
        )
        if tasks_BT is None and allowed_BT is None:
            allowed_BT = self.answerable(batch)
        return route(
            logits_BE,
            self.task_experts_TE,
            tasks_BT=tasks_BT,
            allowed_BT=allowed_BT,
            top_k=self.train_top_k if self.training else self.top_k,
            multi_task_threshold=self.multi_task_threshold,
            selection_bias_E=self.gate.expert_bias,
        )

    def answerable(self, batch: Batch) -> Tensor:
        """(B, T) bool: a span task needs a context in some window of the request."""
        has_context_B = batch.context_mask.any(1)
        if len(batch) > 1:
            windows_B = torch.zeros_like(batch.request_ids).index_add(
                0, batch.request_ids, has_context_B.long()
            )
            has_context_B = windows_B[batch.request_ids] > 0
        return has_context_B.unsqueeze(1) | self.needs_no_context_T

    def inference_choice(self, routing: Routing) -> Tensor:
        """(B, E) bool: the experts that would run at inference for the same tasks."""
        scores_BE = routing.logits_BE.detach() + self.gate.expert_bias
        return choose_experts(scores_BE, routing.tasks_BT, self.task_experts_TE, self.top_k)

    def own_tasks(self, batch: Batch) -> Tensor:
        """(B, T) bool: the task of each row, from `batch.task_ids`; nothing where it is -1."""
        numbers_T = torch.arange(len(self.tasks), device=batch.task_ids.device)
        return batch.task_ids[:, None] == numbers_T

    def answered_tasks(self, batch: Batch) -> Tensor:
        """(B, T) bool: the tasks whose experts learn from each row."""
        own_BT = self.own_tasks(batch)
        return own_BT if batch.answered_BT is None else own_BT | batch.answered_BT

    def answer_loss(self, output: MixtureOutput, batch: Batch) -> Tensor:
        """Negative log-likelihood (B, T) in nats of each row's answer to each task.

        0 for tasks that do not answer the row.
        """
        routing = output.routing
        log_likelihood_BE = torch.full_like(routing.logits_BE, -torch.inf)
        for answer in output.experts:
            rows_N = answer.rows_N
            expert: Any = self.experts[self.expert_names[answer.expert]]
            log_likelihood_N = expert.log_likelihood(answer.logits, batch.select(rows_N))
            column_N = torch.full_like(rows_N, answer.expert)
            log_likelihood_BE = log_likelihood_BE.index_put((rows_N, column_N), log_likelihood_N)
        # Where no expert answered there is nothing but -inf, and NaN for a gradient.
        log_weights_BTE, log_likelihood_BTE = (
            values_BE[:, None]
            .where(self.task_experts_TE, -torch.inf)
            .where(routing.tasks_BT[:, :, None], 0.0)
            for values_BE in (routing.log_weights_BE, log_likelihood_BE)
        )
        return mixture_loss(log_weights_BTE, log_likelihood_BTE).where(routing.tasks_BT, 0.0)

    @property
    def expert_names(self) -> tuple[str, ...]:
        """Names of the experts in the gate's order."""
        return tuple(self.experts.keys())
