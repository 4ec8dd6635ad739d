"""A part of the gate that is fitted later, for one expert that is added to a trained model.

Dimensions: B windows, D encoder width, P pieces of what is read.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GateBrick(nn.Module):
    """Log-odds s of the rows of an added expert against all rows known when it was added.

    A linear discriminant with one prototype per class of the expert and some per other task:
    `s = scale * (logsumexp(own) - logsumexp(others)) + offset`, over what the gate reads and the
    mean of a middle layer, centred and each piece of length 1. The middle layer is there because
    the last one has learned to tell the trained tasks apart and little else (`docs/bricks.md`).

    Args:
        dim: Width of one piece: the encoder's.
        pieces: Pieces that are read.
        own, others: Numbers of prototypes.
    """

    centre: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, *, dim: int, pieces: int, own: int, others: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("centre", torch.zeros(dim * pieces))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))
        self.own = nn.Linear(dim * pieces, own)
        self.others = nn.Linear(dim * pieces, others)

    def unit(self, wide_BD: Tensor) -> Tensor:
        """The rows as they are compared: centred, each piece of length 1."""
        pieces_BPD = (wide_BD - self.centre).unflatten(-1, (-1, self.dim))
        return F.normalize(pieces_BPD, dim=-1, eps=1e-9).flatten(1)

    def forward(self, wide_BD: Tensor) -> Tensor:
        """s (B,) in nats of `wide_BD`, the gate's embedding and the middle layer's side by side."""
        unit_BD = self.unit(wide_BD)
        odds_B = self.own(unit_BD).logsumexp(-1) - self.others(unit_BD).logsumexp(-1)
        return self.scale * odds_B + self.offset
