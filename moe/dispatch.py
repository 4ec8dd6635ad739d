"""Sparse dispatch: which rows of a micro-batch go to which expert. Idle experts are not listed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
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
    batch, so there is no capacity.

    Args:
        chosen_BE: (B, E) bool.
    """
    return dispatch_together([chosen_BE])[0]


def dispatch_together(choices: Sequence[Tensor]) -> list[list[Assignment]]:
    """The assignments of several micro-batches: `chosen_BE` (B, E) bool of each.

    How many rows an expert has must be known here to split them: a GPU is waited for once.
    """
    found = torch.cat(list(choices)).cpu().split([len(chosen_BE) for chosen_BE in choices])
    return [_assignments(chosen_BE, choices[0].device) for chosen_BE in found]


def _assignments(chosen_BE: Tensor, device: torch.device) -> list[Assignment]:
    if len(chosen_BE) == 1:  # most requests of a server: the rest costs as much as the gate
        row_1 = torch.zeros(1, dtype=torch.int64, device=device)
        return [
            Assignment(expert=expert, rows_N=row_1, is_whole=True)
            for expert, is_chosen in enumerate(chosen_BE[0].tolist())
            if is_chosen
        ]
    counts = chosen_BE.sum(0).tolist()
    rows_P = chosen_BE.T.nonzero()[:, 1].to(device, non_blocking=True)  # of the pairs, by expert
    return [
        Assignment(expert=expert, rows_N=rows_N, is_whole=len(rows_N) == len(chosen_BE))
        for expert, rows_N in enumerate(rows_P.split(counts))
        if len(rows_N) > 0
    ]
