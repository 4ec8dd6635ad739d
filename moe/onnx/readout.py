"""What an exported graph computed for a micro-batch, and the experts' answers in it; numpy alone.

Dimensions: B windows, N requests, L tokens, E experts, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe.abstain import Vectors
from moe.data.windows import Window
from moe.decode import Floats, WindowSaid
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


def read_task(
    chunk: Chunk, said: Said, columns: range, *, every_window: bool
) -> dict[int, list[WindowSaid]]:
    """The windows of each request that chose an expert of `columns`, by its number.

    Args:
        chunk: The micro-batch.
        said: What the graph computed for it.
        columns: A task's experts.
        every_window: Whether all windows were read, else the first of each request was.
    """
    weight_NE = said.decision.weight_NE
    read: dict[int, list[WindowSaid]] = {}
    for row in np.flatnonzero(weight_NE[:, list(columns)].any(1)).tolist():
        windows = np.flatnonzero(chunk.owner_B == row).tolist()
        experts = [expert for expert in columns if weight_NE[row, expert] > 0]
        read[row] = [
            WindowSaid(
                experts=experts,
                weights=[float(weight_NE[row, expert]) for expert in experts],
                logits=[_own(said, expert, window, chunk) for expert in experts],
                offset=chunk.windows[window].offset,
            )
            for window in (windows if every_window else windows[:1])
        ]
    return read


def _own(said: Said, expert: int, window: int, chunk: Chunk) -> Floats:
    """An expert's logits for a window; of each of its tokens without padding, or one row."""
    logits: Floats = said.logits[expert][window].astype(np.float64)
    return logits[: len(chunk.windows[window])] if logits.ndim > 1 else logits
