"""Benchmark `experts`: what 64 experts cost over 3, if each row is answered by one.

Dimensions: B rows, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from moe.benchmarks.calls import batch_of, random_rows, routed
from moe.benchmarks.latency import shape_of
from moe.benchmarks.models import TASKS, built_model
from moe.benchmarks.pairs import Benchmark, Case, Options, timed
from moe.config import ExperimentConfig, TaskConfig
from moe.data.module import Step
from moe.lit import LitMixture
from moe.losses import GateSums
from moe.model import Mixture
from moe.schedule import parameter_groups
from moe.types import Batch

MANY = (21, 21, 22)  # experts of sentiment, qa, intent


def training_batch(rows: int, tokens: int) -> Batch:
    """Random rows of all tasks in turn, with answers."""
    padded = random_rows(rows, tokens)
    padded.context_mask[:, tokens // 2 :] = True
    batch = batch_of(padded)
    task_ids = torch.arange(rows) % len(TASKS)
    target_BT = nn.functional.one_hot(task_ids, len(TASKS)).float()
    return replace(
        batch,
        task_ids=task_ids,
        labels=torch.zeros_like(task_ids),
        spans=torch.full((rows, 2), tokens - 1),
        target_BT=target_BT,
        step_rows_T=target_BT.sum(0).long(),
    )


def trainer_of(model: Mixture, config: ExperimentConfig) -> Callable[[Sequence[Batch]], None]:
    """A training step as in `train.py`: micro-batches, clipping, fused AdamW."""
    lit = LitMixture(model=model.train(), config=config, validation=(), total_steps=1, identity={})
    optimizer = AdamW(parameter_groups(model, config.optimizer), fused=True)

    def step(micro_batches: Sequence[Batch]) -> None:
        optimizer.zero_grad()
        sums: GateSums | None = None
        for group in Step(position=0, micro_batches=tuple(micro_batches)).together(
            config.data.max_tokens
        ):
            loss = lit.step_loss(model, group, group[0].step_rows_T, sums, [])
            sums = loss.sums
            (loss.rows + loss.balance).backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.gradient_clip)
        optimizer.step()

    return step


def _sides(shape: str, sizes: Sequence[int]) -> tuple[Mixture, ExperimentConfig]:
    tasks = tuple(
        replace(task, num_experts=count) for task, count in zip(TASKS, sizes, strict=True)
    )
    config = ExperimentConfig(
        tasks={t.name: TaskConfig(type=t.type, train="-", experts=t.num_experts) for t in tasks}
    )
    return built_model(shape, trunk="none", tasks=tasks, train_top_k=1), config


def experts(options: Options) -> Iterator[Case]:
    """32 rows of 32 tokens, forward as the gate chooses, and a training step on labelled rows."""
    shape = shape_of(options)
    sides = [_sides(shape, sizes) for sizes in (MANY, (1, 1, 1))]
    rows = random_rows(32, 32)
    forwards = [routed(model, rows) for model, _ in sides]
    yield timed("forward", *forwards)
    batch = training_batch(32, 32)
    steps: list[Any] = [trainer_of(*side) for side in sides]
    yield timed("step", *(lambda step=step: step([batch]) for step in steps))


EXPERTS = Benchmark(
    about="64 experts against 3, one expert a row, no trunk, 32 rows of 32 tokens; eager torch",
    cases=experts,
    unit="s",
    ratio="ours / baseline",
    better="1 is free, 1.03 costs 3 %",
)
