"""One label for every word of a text: slots of a request, names.

Dimensions: B rows, L tokens, D encoder width, C tags.
"""

from __future__ import annotations

from torch import Tensor, nn

from moe.experts.base import Expert
from moe.experts.trunk import Trunk
from moe.types import Batch


class Tagger(Expert):
    """Trunk, dropout, linear: DistilBERT's token-classification head.

    Args:
        trunk: The expert's own block.
        dim: Encoder width.
        num_classes: Tags.
        dropout: Probability of dropout before the last layer.
    """

    def __init__(self, *, trunk: Trunk, dim: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.trunk = trunk
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, hidden_BLD: Tensor, attention_mask: Tensor, context_mask: Tensor) -> Tensor:
        """Logits (B, L, C) of every token; a word is judged at its first."""
        logits_BLC: Tensor = self.classifier(self.dropout(self.trunk(hidden_BLD, attention_mask)))
        return logits_BLC

    def log_likelihood(self, logits: Tensor, batch: Batch) -> Tensor:
        """Mean of log p(tag) over the words of a row (B,), from `logits` (B, L, C).

        The mean and not the sum, so that a row counts the same however long it is: a departure
        from the likelihood of all tags, which are independent given the text, to the power 1/words.
        0 for a row without words.
        """
        assert batch.tags is not None
        is_word_BL = batch.tags >= 0
        log_probabilities_BLC = logits.float().log_softmax(-1)
        chosen_BL1 = log_probabilities_BLC.gather(2, batch.tags.clamp_min(0)[:, :, None])
        sums_B = (chosen_BL1.squeeze(2) * is_word_BL).sum(1)
        return sums_B / is_word_BL.sum(1).clamp_min(1)
