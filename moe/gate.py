"""The gate: scores of the experts from the shared embedding.

Dimensions: B windows, D width of the embedding, P that of a projection, or of what bricks read, E
experts, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm
from torch.nn import functional as F

from moe.gate_brick import RIGHT_OF_WAY, GateBrick
from moe.types import ExpertSpec


class CosineScores(nn.Module):
    """Cosine between a projection of the embedding and one prototype per expert, in [-1, 1].

    A new expert is one new row of `prototypes`; the scores of the others do not move.

    Args:
        dim: Encoder width.
        width: Width of projection and prototypes.
        num_experts: Number of prototypes.
        hidden: Width of a GELU layer before the projection; 0 is none.
    """

    def __init__(self, *, dim: int, width: int, num_experts: int, hidden: int = 0) -> None:
        super().__init__()
        self.projection: nn.Module = nn.Linear(hidden or dim, width)
        if hidden:
            self.projection = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), self.projection)
        self.prototypes = nn.Parameter(torch.randn(num_experts, width))

    def forward(self, pooled_BD: Tensor) -> Tensor:
        """Scores (B, E) of `pooled_BD` (B, D)."""
        query_BP = self.projection(pooled_BD)
        lengths_BE = vector_norm(query_BP, dim=-1, keepdim=True) * vector_norm(
            self.prototypes, dim=-1
        )
        return F.linear(query_BP, self.prototypes) / lengths_BE.clamp_min(1e-12)


class Gate(nn.Module):
    """Scores every expert in float32; keeps nothing of a forward pass.

    Args:
        dim: Width of the embedding.
        num_experts: Rows of the trained scores: the experts that were trained together.
        kind: `cosine` or `linear`.
        width: Width of the projection, `cosine` only.
        hidden: Width of a layer before the projection, `cosine` only; 0 is none.
        temperature: Divides the scores.
        noise: Standard deviation of the noise added to the logits in training.
        experts: What each expert stands on; None: one row each, in order.
        layer_dim: Encoder width, where `dim` is two means; None is `dim`.
    """

    selection_bias: Tensor

    def __init__(
        self,
        *,
        dim: int,
        num_experts: int,
        kind: Literal["cosine", "linear"] = "cosine",
        width: int = 128,
        hidden: int = 256,
        temperature: float = 0.1,
        noise: float = 0.0,
        experts: Sequence[ExpertSpec] | None = None,
        layer_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.scores: nn.Module = (
            CosineScores(dim=dim, width=width, num_experts=num_experts, hidden=hidden)
            if kind == "cosine"
            else nn.Linear(dim, num_experts)
        )
        self.dim = dim
        self.temperature = temperature
        self.noise = noise
        self.register_buffer("selection_bias", torch.zeros(num_experts))
        as_trained = tuple(ExpertSpec(name="", rows=(row,)) for row in range(num_experts))
        self.experts = as_trained if experts is None else tuple(experts)
        self.rows = sorted({row for expert in self.experts for row in expert.rows})
        columns = [(expert.rows, expert.bricks) for expert in self.experts]
        self.is_changed = columns != [(expert.rows, ()) for expert in as_trained]
        specs = [brick for expert in self.experts for brick in expert.bricks]
        self.bricks = nn.ModuleDict(
            {
                spec.name: GateBrick(
                    dim=layer_dim or dim, layers=spec.layers, own=spec.own, others=spec.others
                )
                for spec in sorted(specs, key=lambda spec: spec.order)
            }
        )

    def logits(self, pooled_BD: Tensor, early_BP: Tensor | None = None) -> Tensor:
        """Gate logits (B, E) of each window alone, without noise.

        An added expert gets `logsumexp(trained logits) + s`. With one of them its probability is
        `sigmoid(s)`, taken from all others alike; several compete by their s, and what is claimed
        by one that was added earlier counts `RIGHT_OF_WAY` nats more. The logits of others do not
        move.

        Args:
            pooled_BD: The shared embedding, float32.
            early_BP: Means of the encoder's first layers, for bricks.
        """
        rows_BR: Tensor = self.scores(pooled_BD) / self.temperature
        if not self.is_changed:
            return rows_BR
        added: dict[str, Tensor] = {}
        trained_B = rows_BR[:, self.rows].logsumexp(-1)
        earlier_B: Tensor | None = None  # log-odds of all bricks so far
        for name, brick in self.bricks.items():
            assert early_BP is not None, "bricks read the first layers"
            s_B = brick(early_BP)
            if earlier_B is not None:
                s_B = s_B - F.softplus(earlier_B + RIGHT_OF_WAY) + F.softplus(earlier_B)
            added[name] = trained_B + s_B
            earlier_B = s_B if earlier_B is None else torch.logaddexp(earlier_B, s_B)
        columns = []
        for expert in self.experts:
            parts = [rows_BR[:, row] for row in expert.rows]
            parts += [added[brick.name] for brick in expert.bricks]
            # Not a logsumexp over one: it would round.
            columns.append(parts[0] if len(parts) == 1 else torch.stack(parts, -1).logsumexp(-1))
        return torch.stack(columns, dim=-1)

    @property
    def expert_bias(self) -> Tensor:
        """(E,) `selection_bias` by expert: the largest of its rows, 0 where it has none."""
        if not self.is_changed:
            return self.selection_bias
        none = self.selection_bias.new_zeros(())
        return torch.stack(
            [self.selection_bias[list(e.rows)].max() if e.rows else none for e in self.experts]
        )

    def forward(
        self, pooled_BD: Tensor, request_ids: Tensor, early_BP: Tensor | None = None
    ) -> Tensor:
        """Gate logits (B, E), float32, equal for the windows of one request.

        Args:
            pooled_BD: The shared embedding.
            request_ids: (B,) int64 in [0, B): windows with one number are averaged.
            early_BP: Means of the encoder's first layers, which bricks read.
        """
        # A softmax over close scores loses the order of experts in bfloat16's 8 bits.
        device_type = pooled_BD.device.type
        is_mixed = torch.is_autocast_enabled(device_type)
        with torch.autocast(device_type, enabled=False) if is_mixed else nullcontext():
            early_BP = None if early_BP is None else early_BP.float()
            logits_BE = self.logits(pooled_BD.float(), early_BP)
            if self.training and self.noise > 0:
                logits_BE = logits_BE + self.noise * torch.randn_like(logits_BE)
            return mean_per_request(logits_BE, request_ids)

    @torch.no_grad()
    def update_bias(self, load_E: Tensor, task_sizes: Sequence[int], rate: float) -> None:
        """One step of loss-free balancing (Wang et al. 2024, arXiv 2408.15664, algorithm 1).

        Inside each task, an expert with more than the mean load becomes less attractive by
        `rate` logits and one with less becomes more so. The paper adds the bias to sigmoid
        scores; here it is added to logits, and only to choose.

        Args:
            load_E: (E,) times each expert was chosen in the optimizer step.
            task_sizes: Number of experts of each task.
            rate: Logits per step.
        """
        sizes = list(task_sizes)
        for bias, load in zip(self.selection_bias.split(sizes), load_E.split(sizes), strict=True):
            bias += rate * torch.sign(load.float().mean() - load)
            bias -= bias.mean()  # an expert that is added later starts at 0


def mean_per_request(values_BX: Tensor, request_ids: Tensor) -> Tensor:
    """The mean (B, X) over the windows of the same request, for every window.

    Args:
        values_BX: Numbers of each window.
        request_ids: (B,) int64 in [0, B).
    """
    if len(values_BX) == 1:  # most requests of a server: the rest costs as much as the gate
        return values_BX
    sums_BX = torch.zeros_like(values_BX).index_add(0, request_ids, values_BX)
    counts_B = torch.zeros_like(values_BX[:, 0]).index_add(
        0, request_ids, torch.ones_like(values_BX[:, 0])
    )
    return sums_BX[request_ids] / counts_B[request_ids, None]
