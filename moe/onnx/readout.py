"""What an exported graph computed for a micro-batch, and the experts' answers in it; numpy alone.

Dimensions: B windows, N requests, L tokens, E experts, T tasks, P (request, expert) pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe.abstain import Vectors
from moe.data.windows import Window
from moe.decode import ClassifierVotes, Floats, SpanChoice, best_span
from moe.onnx.routing import Decision
from moe.requests import Request


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """The requests of one micro-batch.

    Attributes:
        requests: N requests.
        windows: Their windows, those of one request beside each other.
        owner_B: Number of each window's request.
        first_N: Index of each request's first window.
        offsets: For each request the character offsets of its context's tokens.
    """

    requests: Sequence[Request]
    windows: Sequence[Window]
    owner_B: NDArray[np.int64]
    first_N: NDArray[np.int64]
    offsets: Sequence[Any]

    def mean(self, values_BX: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mean (N, X) over the windows of each request."""
        sums_NX: Floats = np.add.reduceat(values_BX.astype(np.float64), self.first_N, axis=0)
        return (sums_NX / np.bincount(self.owner_B)[:, None]).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Said:
    """What the graph computed for a micro-batch.

    Attributes:
        pooled_ND: What the gate read, the mean over the windows of each request.
        allowed_NT: The tasks that could answer.
        decision: The gate's.
        logits: By expert, for every window; 0 in windows that it did not read.
    """

    pooled_ND: Vectors
    allowed_NT: NDArray[np.bool_]
    decision: Decision
    logits: dict[int, NDArray[np.float32]]


def votes(chunk: Chunk, said: Said, columns: range) -> ClassifierVotes:
    """Votes of the experts `columns` on the first window of each request that chose them."""
    weight_NE = said.decision.weight_NE
    pairs = [(row, e) for e in columns for row in np.flatnonzero(weight_NE[:, e])]
    row_P, expert_P = np.array(pairs, dtype=np.int64).T
    return ClassifierVotes(
        row_P=row_P,
        expert_P=expert_P,
        weight_P=weight_NE[row_P, expert_P],
        logits_PC=np.stack([said.logits[e][chunk.first_N[row]] for row, e in pairs]).astype(float),
    )


def span(chunk: Chunk, said: Said, columns: range, row: int) -> SpanChoice:
    """The best span of a request over its windows and the task's chosen experts."""
    weight_E = said.decision.weight_NE[row]
    experts = [expert for expert in columns if weight_E[expert] > 0]
    windows: list[tuple[list[float], list[Floats], int]] = []
    for window in np.flatnonzero(chunk.owner_B == row).tolist():
        length = len(chunk.windows[window])
        logits = [said.logits[expert][window, :length].astype(np.float64) for expert in experts]
        windows.append(([weight_E[e] for e in experts], logits, chunk.windows[window].offset))
    return best_span(windows)
