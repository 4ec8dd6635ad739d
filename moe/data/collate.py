"""From windows to the tensors of a micro-batch.

Dimensions: B windows of a micro-batch, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe.data.windows import TextTokenizer, Window, pad_windows
from moe.types import Batch


def collate(
    windows: Sequence[Window],
    requests: Sequence[int],
    tokenizer: TextTokenizer,
    step_rows_T: Tensor | None = None,
) -> Batch:
    """One padded micro-batch.

    Args:
        windows: B windows.
        requests: For each the number of its request, counted from 0 within the micro-batch.
        tokenizer: For the ids of the special tokens.
        step_rows_T: (T,) int64, see `Batch`.
    """
    padded = pad_windows(windows, tokenizer)
    return Batch(
        input_ids=torch.from_numpy(padded.input_ids),
        attention_mask=torch.from_numpy(padded.attention_mask),
        context_mask=torch.from_numpy(padded.context_mask),
        request_ids=torch.tensor(requests),
        task_ids=torch.tensor([window.task for window in windows]),
        labels=torch.tensor([window.label for window in windows]),
        spans=torch.tensor([window.positions for window in windows]),
        tags=_tags(windows, padded.input_ids.shape[1]),
        target_BT=None if step_rows_T is None else _targets(windows, len(step_rows_T)),
        answered_BT=None if step_rows_T is None else _answered(windows, len(step_rows_T)),
        step_rows_T=step_rows_T,
    )


def _tags(windows: Sequence[Window], length: int) -> Tensor | None:
    """The class at the first token of every word (B, L), -1 elsewhere; None without any."""
    if all(window.tags is None for window in windows):
        return None
    tags_BL = torch.full((len(windows), length), -1)
    for row, window in enumerate(windows):
        if window.tags is not None:  # the text begins after [CLS]
            tags_BL[row, 1 : 1 + len(window.tags)] = torch.tensor(window.tags)
    return tags_BL


def _targets(windows: Sequence[Window], num_tasks: int) -> Tensor:
    """Where the gate should send each window (B, T): equal shares over its tasks."""
    target_BT = torch.zeros(len(windows), num_tasks)
    for row, window in enumerate(windows):
        tasks = list(window.targets or (window.task,))
        target_BT[row, tasks] = 1 / len(tasks)
    return target_BT


def _answered(windows: Sequence[Window], num_tasks: int) -> Tensor | None:
    """The tasks whose answer each routing row holds (B, T); None without any."""
    if not any(window.answered for window in windows):
        return None
    answered_BT = torch.zeros(len(windows), num_tasks, dtype=torch.bool)
    for row, window in enumerate(windows):
        answered_BT[row, list(window.answered)] = True
    return answered_BT


@dataclass(frozen=True, kw_only=True)
class RequestBatch:
    """A micro-batch of whole requests, all windows of each.

    Attributes:
        batch: The windows; those of one request are neighbours.
        rows: For each request its index in the caller's list.
        offsets: For each window what to add to a position to get the token of the whole context.
    """

    batch: Batch
    rows: tuple[int, ...]
    offsets: tuple[int, ...]

    def to(self, *args: Any, **kwargs: Any) -> RequestBatch:
        """The tensors moved as by `torch.Tensor.to`."""
        return replace(self, batch=self.batch.to(*args, **kwargs))

    def first_windows(self) -> list[int]:
        """Index of each request's first window."""
        return np.unique(self.batch.request_ids.cpu().numpy(), return_index=True)[1].tolist()


def collate_requests(
    rows: Sequence[int], windows: Sequence[Sequence[Window]], tokenizer: TextTokenizer
) -> RequestBatch:
    """All windows of some requests as one micro-batch.

    Args:
        rows: Index of each request in the caller's list.
        windows: For each of these requests its windows.
        tokenizer: For the ids of the special tokens.
    """
    flat = [window for group in windows for window in group]
    requests = [number for number, group in enumerate(windows) for _ in group]
    return RequestBatch(
        batch=collate(flat, requests, tokenizer),
        rows=tuple(rows),
        offsets=tuple(window.offset for window in flat),
    )
