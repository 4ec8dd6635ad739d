"""The expert's own residual block over the token states.

Dimensions: B rows, L tokens, M tokens that are wanted, D encoder width, H attention heads, F
feed-forward width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe.attention import attend, padding_bias


class SelfAttention(nn.Module):
    """Multi-head self-attention with a residual and a layer norm after it (Vaswani et al. 2017)."""

    def __init__(self, *, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim, eps=1e-12)

    def forward(self, hidden_BLD: Tensor, attention_mask: Tensor, first_only: bool) -> Tensor:
        """(B, M, D): what each of M tokens gathers of all; M is L, or 1 if the first alone asks.

        Args:
            hidden_BLD: Token states.
            attention_mask: (B, L) bool, hides padding.
            first_only: Whether the first token alone asks.
        """
        asking_BMD = hidden_BLD[:, :1] if first_only else hidden_BLD
        # No dropout on attention weights: it takes the CPU off the fused kernel.
        mixed_BMD = attend(
            self.query(asking_BMD),
            self.key(hidden_BLD),
            self.value(hidden_BLD),
            padding_bias(attention_mask, hidden_BLD),
            num_heads=self.num_heads,
        )
        normed_BMD: Tensor = self.norm(self.dropout(self.output(mixed_BMD)) + asking_BMD)
        return normed_BMD


class FeedForward(nn.Module):
    """Two linear layers with GELU, a residual and a layer norm after it."""

    def __init__(self, *, dim: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(dim, hidden_dim)
        self.outer = nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim, eps=1e-12)

    def forward(self, hidden_BLD: Tensor) -> Tensor:
        """(B, L, D) from `hidden_BLD` (B, L, D)."""
        changed_BLD = self.dropout(self.outer(F.gelu(self.inner(hidden_BLD))))
        normed_BLD: Tensor = self.norm(changed_BLD + hidden_BLD)
        return normed_BLD


class Trunk(nn.Module):
    """`none`, `ffn`, or `transformer`: attention and feed-forward, the form of a DistilBERT layer.

    Args:
        kind: Which blocks there are.
        dim: Encoder width.
        num_heads: Attention heads, a divisor of `dim`.
        hidden_dim: Width inside the feed-forward block.
        dropout: Probability of dropout on the blocks' outputs.
    """

    def __init__(
        self,
        *,
        kind: Literal["none", "ffn", "transformer"],
        dim: int,
        num_heads: int,
        hidden_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention = (
            SelfAttention(dim=dim, num_heads=num_heads, dropout=dropout)
            if kind == "transformer"
            else None
        )
        self.feed_forward = (
            None if kind == "none" else FeedForward(dim=dim, hidden_dim=hidden_dim, dropout=dropout)
        )

    def forward(
        self, hidden_BLD: Tensor, attention_mask: Tensor, first_only: bool = False
    ) -> Tensor:
        """(B, M, D): new states of M tokens; M is L, or 1 if the first alone is wanted.

        Args:
            hidden_BLD: Token states.
            attention_mask: (B, L) bool, hides padding.
            first_only: Whether the first token alone is wanted: the same numbers for less.
        """
        if self.attention is not None:
            hidden_BLD = self.attention(hidden_BLD, attention_mask, first_only)
        elif first_only:
            hidden_BLD = hidden_BLD[:, :1]
        if self.feed_forward is not None:
            hidden_BLD = self.feed_forward(hidden_BLD)
        return hidden_BLD


# The names of a trunk's modules in a layer of a DistilBERT.
LAYER_NAMES = {
    "attention.query": "attention.q_lin",
    "attention.key": "attention.k_lin",
    "attention.value": "attention.v_lin",
    "attention.output": "attention.out_lin",
    "attention.norm": "sa_layer_norm",
    "feed_forward.inner": "ffn.lin1",
    "feed_forward.outer": "ffn.lin2",
    "feed_forward.norm": "output_layer_norm",
}


@torch.no_grad()
def copy_layer(layer: nn.Module, trunk: Any) -> None:
    """Gives a `transformer` trunk the weights of a DistilBERT layer; others stay as they are.

    Of a wider layer the neurons stay that can say most: by the product of the lengths of their
    weights on both sides.
    """
    if trunk.attention is None:
        return
    theirs = layer.state_dict()
    width = trunk.feed_forward.inner.out_features
    size_F = theirs["ffn.lin1.weight"].norm(dim=1) * theirs["ffn.lin2.weight"].norm(dim=0)
    kept_F = size_F.topk(width).indices.sort().values
    theirs["ffn.lin1.weight"] = theirs["ffn.lin1.weight"][kept_F]
    theirs["ffn.lin1.bias"] = theirs["ffn.lin1.bias"][kept_F]
    theirs["ffn.lin2.weight"] = theirs["ffn.lin2.weight"][:, kept_F]
    trunk.load_state_dict(
        {
            f"{mine}.{kind}": theirs[f"{name}.{kind}"]
            for mine, name in LAYER_NAMES.items()
            for kind in ("weight", "bias")
        }
    )
