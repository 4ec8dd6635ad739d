"""The same rows for both sides, and a call of each model on them.

Dimensions: B rows, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moe.data.windows import PaddedWindows
from moe.encoder import encode_layers
from moe.fused import FusedLayers
from moe.model import Mixture
from moe.types import Batch


def random_rows(rows: int, tokens: int, *, vocabulary: int = 30522, seed: int = 0) -> PaddedWindows:
    """Rows of random words without padding or passage."""
    ids = np.random.default_rng(seed).integers(1000, vocabulary, (rows, tokens), dtype=np.int64)
    return PaddedWindows(
        input_ids=ids,
        attention_mask=np.ones((rows, tokens), dtype=bool),
        context_mask=np.zeros((rows, tokens), dtype=bool),
    )


def batch_of(rows: PaddedWindows) -> Batch:
    """The rows as requests of one window each."""
    count = len(rows.input_ids)
    return Batch(
        input_ids=torch.from_numpy(rows.input_ids),
        attention_mask=torch.from_numpy(rows.attention_mask),
        context_mask=torch.from_numpy(rows.context_mask),
        request_ids=torch.arange(count),
        task_ids=torch.full((count,), -1),
        labels=torch.full((count,), -1),
        spans=torch.zeros(count, 2, dtype=torch.int64),
    )


def named(model: Mixture, names: tuple[str, ...], rows: int) -> Tensor:
    """(B, T) bool: these tasks for every row."""
    return torch.tensor([[task.name in names for task in model.tasks]]).expand(rows, -1)


def forward(model: nn.Module, rows: PaddedWindows) -> Callable[[], Any]:
    """Calls a Hugging Face model on the rows as its tokenizer would hand them over."""
    input_ids = torch.from_numpy(rows.input_ids)
    attention_mask = torch.from_numpy(rows.attention_mask.astype(np.int64))

    @torch.inference_mode()
    def call() -> Any:
        return model(input_ids=input_ids, attention_mask=attention_mask)

    return call


def routed(model: Mixture, rows: PaddedWindows, *tasks: str) -> Callable[[], Any]:
    """Calls a mixture on the rows as the predictor does; without tasks its gate chooses."""
    model.fused = FusedLayers(model.encoder)
    batch = batch_of(rows)
    tasks_BT = named(model, tasks, len(batch)) if tasks else None

    @torch.inference_mode()
    def call() -> Any:
        return model(batch, tasks_BT=tasks_BT)

    return call


def encoder_alone(model: Mixture, rows: PaddedWindows) -> Callable[[], Any]:
    """Calls the encoder as the mixture does, and nothing else of it."""
    blocks = [(torch.from_numpy(rows.input_ids), torch.from_numpy(rows.attention_mask))]

    @torch.inference_mode()
    def call() -> Any:
        return encode_layers(model.encoder, blocks, [], model.fused)

    return call
