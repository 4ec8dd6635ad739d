"""The one abstract contract: what an expert is.

Dimensions: B rows, L tokens, D encoder width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from moe.types import Batch


class Expert(nn.Module, ABC):
    """A trunk over the token states and a head that answers one task.

    An expert sees only rows that were routed to it and treats each row alone: its answer must
    not depend on the other rows.
    """

    @abstractmethod
    def forward(self, hidden_BLD: Tensor, attention_mask: Tensor, context_mask: Tensor) -> Tensor:
        """Logits, with the rows in the first dimension.

        Args:
            hidden_BLD: Token states of the shared encoder.
            attention_mask: (B, L) bool, True at tokens.
            context_mask: (B, L) bool, True at tokens of the context.
        """

    @abstractmethod
    def log_likelihood(self, logits: Tensor, batch: Batch) -> Tensor:
        """log p(answer | row) in nats, (B,) float32.

        Args:
            logits: What `forward` returned for the rows of `batch`.
            batch: The same rows, with their answers.
        """
