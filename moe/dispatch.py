"""Sparse dispatch: which rows of a micro-batch go to which expert. Idle experts are not listed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """The rows of one expert.

    Attributes:
        expert: Its column in the gate.
        rows_N: (N,) int64 ascending rows of the micro-batch, at least one.
        is_whole: Whether these are all rows, so that nothing has to be copied.
    """

    expert: int
    rows_N: Tensor
    is_whole: bool


def dispatch(chosen_BE: Tensor) -> list[Assignment]:
    """One assignment per expert that some row chose, in the order of the experts.

    Nothing is dropped and nothing is padded: an answer must not depend on the neighbours in the
    batch, so there is no capacity. On a GPU the counts cost one synchronisation.

    Args:
        chosen_BE: (B, E) bool.
    """
    pairs_P2 = chosen_BE.T.nonzero()
    counts = chosen_BE.sum(0).tolist()
    rows = pairs_P2[:, 1].split(counts)
    return [
        Assignment(expert=expert, rows_N=rows[expert], is_whole=count == len(chosen_BE))
        for expert, count in enumerate(counts)
        if count > 0
    ]
