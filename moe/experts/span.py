"""The piece of the context that answers a question, or that there is none.

Dimensions: B windows, L tokens, D encoder width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from moe.experts.base import Expert
from moe.experts.trunk import Trunk
from moe.types import Batch


class Span(Expert):
    """Trunk, dropout, linear to a start and an end score: DistilBERT's question-answering head.

    Args:
        trunk: The expert's own block.
        dim: Encoder width.
        dropout: Probability of dropout before the last layer.
    """

    def __init__(self, *, trunk: Trunk, dim: int, dropout: float) -> None:
        super().__init__()
        self.trunk = trunk
        self.dropout = nn.Dropout(dropout)
        self.qa_outputs = nn.Linear(dim, 2)

    def forward(self, hidden_BLD: Tensor, attention_mask: Tensor, context_mask: Tensor) -> Tensor:
        """Start and end logits (B, L, 2), float32: -inf where no span may start or end.

        Position 0, the [CLS] token, stands for "no answer in this window" (SQuAD 2.0).
        """
        hidden_BLD = self.trunk(hidden_BLD, attention_mask)
        logits_BL2 = self.qa_outputs(self.dropout(hidden_BLD)).float()
        allowed_BL = context_mask.clone()
        allowed_BL[:, 0] = True
        return logits_BL2.masked_fill(~allowed_BL[:, :, None], -torch.inf)

    def log_likelihood(self, logits: Tensor, batch: Batch) -> Tensor:
        """`log p(start) + log p(end)` (B,) from `logits` (B, L, 2) and `batch.spans` (B, 2)."""
        log_probabilities_BL2 = logits.log_softmax(1)
        return log_probabilities_BL2.gather(1, batch.spans[:, None, :]).sum((1, 2))
