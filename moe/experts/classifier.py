"""One label for a text: sentiment, intent, topic.

Dimensions: B rows, L tokens, D encoder width, C classes, out-of-scope class included (last).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from moe.experts.base import Expert
from moe.experts.trunk import Trunk
from moe.types import Batch


class Classifier(Expert):
    """Trunk, pooled vector, dense layer with ReLU, linear: DistilBERT's classification head.

    Args:
        trunk: The expert's own block.
        dim: Encoder width.
        num_classes: Classes of the head.
        pooling: The head reads the `first` token or the `mean`.
        dropout: Probability of dropout before the last layer.
    """

    def __init__(
        self,
        *,
        trunk: Trunk,
        dim: int,
        num_classes: int,
        pooling: Literal["first", "mean"],
        dropout: float,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.pooling = pooling
        self.pre_classifier = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, hidden_BLD: Tensor, attention_mask: Tensor, context_mask: Tensor) -> Tensor:
        """Logits (B, C); the context is read like any other text."""
        if self.pooling == "first":
            pooled_BD = self.trunk(hidden_BLD, attention_mask, first_only=True)[:, 0]
        else:
            hidden_BLD = self.trunk(hidden_BLD, attention_mask)
            weights_BL1 = attention_mask[:, :, None].to(hidden_BLD.dtype)
            pooled_BD = (hidden_BLD * weights_BL1).sum(1) / weights_BL1.sum(1)
        features_BD = F.relu(self.pre_classifier(pooled_BD))
        logits_BC: Tensor = self.classifier(self.dropout(features_BD))
        return logits_BC

    def log_likelihood(self, logits: Tensor, batch: Batch) -> Tensor:
        """log p(label) (B,) from `logits` (B, C) and `batch.labels` (B,) in [0, C)."""
        log_probabilities_BC = logits.float().log_softmax(-1)
        return log_probabilities_BC.gather(1, batch.labels[:, None]).squeeze(1)
