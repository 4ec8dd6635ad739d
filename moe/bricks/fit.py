"""Training of one expert on kept states: nothing else has a gradient.

Dimensions: B windows of a batch, L tokens, D encoder width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from moe.bricks.states import EncodedRows, shuffled_batches
from moe.config import OptimizerConfig
from moe.data.windows import TextTokenizer
from moe.experts import Expert
from moe.model_config import check_range
from moe.schedule import rate_factor
from moe.types import Batch, NonFiniteError


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How an expert is trained.

    Attributes:
        epochs: Passes over the rows.
        steps: Optimizer steps, instead of `epochs` if set.
        batch_size: Windows of a step.
        optimizer: AdamW with warm-up and decay; of the rates only `expert_lr` counts.
        dropout: Of the expert while it is trained; None is its own.
        state_dropout: Of the states that it reads: as they are the same in every epoch.
        seed: Of new weights, order and dropout.
    """

    epochs: int = 10
    steps: int | None = None
    batch_size: int = 32
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(expert_lr=5e-4))
    dropout: float | None = None
    state_dropout: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("fit", self, "epochs steps batch_size", 1)
        check_range("fit", self, "dropout state_dropout", 0, 0.99)

    def total_steps(self, num_windows: int) -> int:
        """Optimizer steps over so many windows."""
        return self.steps or self.epochs * math.ceil(num_windows / self.batch_size)


def named_groups(expert: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Parameter groups by name, with weight decay on matrices alone.

    Named, so that the optimizer's state says whose it is and is not handed on by position.
    """
    named = list(expert.named_parameters())
    return [
        {
            "params": [(name, p) for name, p in named if (p.ndim > 1) == decayed],
            "lr": config.expert_lr,
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for decayed in (True, False)
        if any((p.ndim > 1) == decayed for _, p in named)
    ]


def answer_loss(expert: Expert, hidden_BLD: Tensor, batch: Batch) -> Tensor:
    """Mean negative log-likelihood in nats of the answers of a batch."""
    logits = expert(hidden_BLD, batch.attention_mask, batch.context_mask)
    return -expert.log_likelihood(logits, batch).mean()


def fit_expert(
    expert: Expert, rows: EncodedRows, tokenizer: TextTokenizer, config: FitConfig
) -> list[float]:
    """Trains the expert in place; the loss of each optimizer step in nats.

    Raises:
        NonFiniteError: A loss is not a number.
    """
    total = config.total_steps(len(rows))
    optimizer = AdamW(named_groups(expert, config.optimizer))
    losses: list[float] = []
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), _dropout(expert, config.dropout):
        torch.manual_seed(config.seed)
        expert.train()
        for step, chosen in enumerate(_steps(rows, config, total)):
            for group in optimizer.param_groups:
                rate = rate_factor(step, total, config.optimizer)
                group["lr"] = config.optimizer.expert_lr * rate
            hidden_BLD, batch = rows.batch(chosen, tokenizer)
            loss = answer_loss(expert, F.dropout(hidden_BLD, config.state_dropout), batch)
            if not torch.isfinite(loss):
                raise NonFiniteError(
                    f"the loss of step {step} is {loss.item()}: nothing was written; lower the "
                    f"learning rate, which is {config.optimizer.expert_lr:g}"
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            clip = config.optimizer.gradient_clip
            nn.utils.clip_grad_norm_(expert.parameters(), clip if clip > 0 else math.inf)
            optimizer.step()
            losses.append(loss.item())
        expert.eval()
    optimizer.zero_grad()
    return losses


@contextmanager
def _dropout(expert: Expert, probability: float | None) -> Iterator[None]:
    """Another probability of dropout for a while; None changes nothing."""
    modules = [module for module in expert.modules() if isinstance(module, nn.Dropout)]
    own = [module.p for module in modules]
    for module in modules:
        module.p = module.p if probability is None else probability
    try:
        yield
    finally:
        for module, before in zip(modules, own, strict=True):
            module.p = before


def _steps(rows: EncodedRows, config: FitConfig, total: int) -> Iterator[list[int]]:
    generator = np.random.default_rng(config.seed)
    lengths = [len(window) for window in rows.windows]
    done = 0
    while done < total:
        for chosen in shuffled_batches(lengths, config.batch_size, generator):
            if done == total:
                return
            yield chosen
            done += 1
