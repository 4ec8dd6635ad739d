"""The frozen encoder's output for some rows, computed once and kept for all epochs.

Dimensions: B windows of a batch, L tokens, D encoder width, W windows of all rows, S tokens of
all, P width of what gate bricks read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from moe.abstain import Vectors
from moe.checkpoint import Bundle
from moe.config import DataConfig
from moe.data.collate import collate
from moe.data.tables import TaskTable, targets
from moe.data.windows import TextTokenizer, Window, token_budget
from moe.model import Mixture
from moe.types import Batch

MOST_BYTES = 2 * 10**9  # of 32-bit states; more are kept in 16 bits


@dataclass(frozen=True, kw_only=True)
class EncodedRows:
    """Windows of a table with the states of their tokens.

    Attributes:
        windows: W windows with their answers.
        requests: The row of the table that each is a part of, ascending.
        states_SD: Token states of all windows one after the other, 32 or 16 bits.
        starts: Where the states of each window begin, and where the last end.
        wide_WP: What the gate reads, and then what its bricks read.
    """

    windows: tuple[Window, ...]
    requests: tuple[int, ...]
    states_SD: Tensor
    starts: tuple[int, ...]
    wide_WP: Tensor

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, chosen: Sequence[int], tokenizer: TextTokenizer) -> tuple[Tensor, Batch]:
        """States (B, L, D) and the batch of some windows, on the CPU."""
        batch = collate([self.windows[i] for i in chosen], range(len(chosen)), tokenizer)
        pieces = [self.states_SD[self.starts[i] : self.starts[i + 1]] for i in chosen]
        hidden_BLD = torch.nn.utils.rnn.pad_sequence(pieces, batch_first=True).float()
        return hidden_BLD, batch

    def wide_rows(self) -> Vectors:
        """What gate and bricks read of each row (N, P): the mean over its windows."""
        owners = torch.tensor(self.requests)
        _, owners, counts = owners.unique_consecutive(return_inverse=True, return_counts=True)
        zeros_NP = torch.zeros(len(counts), self.wide_WP.shape[1])
        wide_NP: Vectors = (zeros_NP.index_add(0, owners, self.wide_WP) / counts[:, None]).numpy()
        return wide_NP


def labelled_windows(
    table: TaskTable, data: DataConfig, rows: Sequence[int] | None = None
) -> tuple[list[Window], list[int]]:
    """All windows of the rows with their answers, and for each the row that it is a part of."""
    windows, requests = [], []
    shape = {"max_length": data.max_length, "stride": data.stride}
    for number, record in enumerate(table.read(range(len(table)) if rows is None else rows)):
        for window in table.windows(record, **shape):
            answer = targets(record, len(window.text_ids))
            windows.append(replace(window, task=table.task, **answer))
            requests.append(number)
    return windows, requests


@torch.no_grad()
def encode_rows(bundle: Bundle, table: TaskTable, rows: Sequence[int] | None = None) -> EncodedRows:
    """Runs the encoder once over the rows, in the precision of the training.

    Args:
        bundle: Whose encoder, in evaluation mode.
        table: Of the rows; its task says which layer.
        rows: Some of its rows; None is all.
    """
    model, data = bundle.model, bundle.config.data
    windows, requests = labelled_windows(table, data, rows)
    lengths = [len(window) for window in windows]
    starts = np.cumsum([0, *lengths])
    width = model.encoder.config.dim
    kind = torch.float32 if 4 * width * starts[-1] <= MOST_BYTES else torch.float16
    states_SD = torch.empty(int(starts[-1]), width, dtype=kind)
    wide: list[Tensor] = [torch.empty(0)] * len(windows)
    for group in token_budget(lengths, data.max_tokens, data.max_padding):
        batch = collate([windows[i] for i in group], range(len(group)), bundle.tokenizer)
        hidden_BLD, wide_BP = _states(
            model, batch, bundle.precision.startswith("bf16"), table.spec.layer
        )
        for place, i in enumerate(group):
            states_SD[starts[i] : starts[i + 1]] = hidden_BLD[place, : lengths[i]]
            wide[i] = wide_BP[place]
    return EncodedRows(
        windows=tuple(windows),
        requests=tuple(requests),
        states_SD=states_SD,
        starts=tuple(starts.tolist()),
        wide_WP=torch.stack(wide),
    )


def _states(model: Mixture, batch: Batch, bf16: bool, layer: int | None) -> tuple[Tensor, Tensor]:
    device = next(model.encoder.parameters()).device
    batch = batch.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        embedded = model.embed([batch], early=True, layer=layer)[0]
    hidden_BLD = embedded.hidden_BLD if layer is None else embedded.layers[layer]
    return hidden_BLD.float().cpu(), embedded.wide_BP.cpu()


def shuffled_batches(
    lengths: Sequence[int], batch_size: int, generator: np.random.Generator, pool_size: int = 16
) -> Iterator[list[int]]:
    """One epoch in batches of like length: rows are shuffled, then sorted in pools of 16 batches.

    Args:
        lengths: Tokens of each window.
        batch_size: Windows of a batch; the last ones may be fewer.
        generator: Draws the order.
        pool_size: Batches of a pool.
    """
    order = generator.permutation(len(lengths))
    batches = []
    for at in range(0, len(order), batch_size * pool_size):
        part = sorted(order[at : at + batch_size * pool_size].tolist(), key=lambda i: lengths[i])
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    for number in generator.permutation(len(batches)):
        yield batches[number]
