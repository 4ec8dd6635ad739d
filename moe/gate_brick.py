"""A part of the gate that is fitted later, for one expert that is added to a trained model.

Dimensions: B windows, D encoder width, P width of all layers that are read, L of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

RIGHT_OF_WAY = 5.0  # nats that the claim of an earlier brick counts more than that of a later one


class GateBrick(nn.Module):
    """Log-odds s of the rows of an added expert against all rows known when it was added.

    A linear discriminant with one prototype per class of the expert and some per other task:
    `s = scale * (logsumexp(own) - logsumexp(others)) + offset`, over the means of the text in the
    encoder's first layers, centred and each of length 1. Not over the last ones: these have learned
    to tell the trained tasks apart and little else (`docs/bricks.md`).

    Args:
        dim: The encoder's width.
        layers: Layers that are read.
        own, others: Numbers of prototypes.
    """

    centre: Tensor
    scale: Tensor
    offset: Tensor

    def __init__(self, *, dim: int, layers: int, own: int, others: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("centre", torch.zeros(dim * layers))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))
        self.own = nn.Linear(dim * layers, own)
        self.others = nn.Linear(dim * layers, others)

    def unit(self, early_BP: Tensor) -> Tensor:
        """The rows as they are compared: centred, each layer's mean of length 1."""
        means_BLD = (early_BP - self.centre).unflatten(-1, (-1, self.dim))
        return F.normalize(means_BLD, dim=-1, eps=1e-9).flatten(1)

    def forward(self, early_BP: Tensor) -> Tensor:
        """s (B,) in nats of `early_BP`, the means of the layers side by side."""
        unit_BP = self.unit(early_BP)
        odds_B = self.own(unit_BP).logsumexp(-1) - self.others(unit_BP).logsumexp(-1)
        return self.scale * odds_B + self.offset
