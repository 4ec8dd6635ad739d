"""Benchmark `train-cpu`: the same training steps with one setting changed.

Each side of each round is a process of its own, so that allocator settings and caches of one side
cannot help the other.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from moe.allocator import keep_freed_memory
from moe.benchmarks.models import SHAPES
from moe.benchmarks.pairs import Benchmark, Case, Options
from moe.benchmarks.processes import run_side
from moe.encoder import build_encoder, compile_blocks, encode_together
from moe.pretrained import MINILM

# What each side of a case sets; everything else is as in training.
SIDES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "allocator": ({"keep": True}, {"keep": False}),
    "attention_dropout": ({"attention_dropout": 0.0}, {"attention_dropout": 0.1}),
    "float32": ({"bf16": False}, {"bf16": True}),
    "compile": ({"compiled": True}, {"compiled": False}),
    "together": ({"together": True}, {"together": False}),
}
# Rows and tokens of the micro-batches of one step, about as `configs/local.yaml` has them.
STEP = ((5, 190), (4, 90), (18, 22), (22, 14), (18, 9))
BATCH = {"rows": 16, "tokens": 96, "steps": 5}


def tokens_per_second(
    *,
    rows: int,
    tokens: int,
    steps: int,
    threads: int,
    keep: bool = True,
    attention_dropout: float = 0.0,
    bf16: bool = False,
    compiled: bool = False,
    together: bool | None = None,
    shape: str = MINILM,
) -> float:
    """Forward and backward passes of a bare encoder on the CPU.

    Args:
        rows: Rows of a micro-batch.
        tokens: Tokens of a row.
        steps: Passes; the first is not timed.
        threads: To compute on.
        keep: Whether `keep_freed_memory` is called first.
        attention_dropout: Probability of dropout on attention weights.
        bf16: Whether to compute in bfloat16.
        compiled: Whether `moe.encoder.compile_blocks` is called first.
        together: Whether the micro-batches of `STEP` are encoded together or one by one; None
            takes one of `rows` and `tokens`.
        shape: A key of `SHAPES`.
    """
    if keep:
        keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = build_encoder({**SHAPES[shape], "attention_dropout": attention_dropout}).train()
    if compiled:
        compile_blocks(model)
    sizes = ((rows, tokens),) if together is None else STEP
    blocks = [torch.randint(1, model.config.vocab_size, size) for size in sizes]
    groups = [blocks] if together else [[block] for block in blocks]
    start = time.perf_counter()
    for step in range(steps + 1):
        if step == 1:
            start = time.perf_counter()
        model.zero_grad()
        for group in groups:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                states = encode_together(model, [(ids, ids > 0) for ids in group])
            losses = [hidden_BLD.float().square().mean() for hidden_BLD in states]
            torch.stack(losses).sum().backward()
    return steps * sum(map(torch.numel, blocks)) / (time.perf_counter() - start)


def train_cpu(options: Options) -> Iterator[Case]:
    """Each of `SIDES` by itself."""
    common = {"benchmark": "train-cpu", "threads": options.threads, **BATCH}
    if options.quick:
        common |= {"shape": "tiny", "rows": 2, "tokens": 4, "steps": 1}
    for name, (ours, baseline) in SIDES.items():
        yield Case(
            name=name,
            ours=partial(run_side, options.script, {**common, **ours}),
            baseline=partial(run_side, options.script, {**common, **baseline}),
        )


TRAIN_CPU = Benchmark(
    about="forward and backward of a bare encoder, 16 rows of 96 tokens: freed memory kept, no "
    "dropout on attention weights, float32 instead of bfloat16, compiled blocks; and the "
    "micro-batches of a step like those of local.yaml encoded together",
    cases=train_cpu,
    unit="tokens/s",
    ratio="ours / baseline",
    better="above 1 ours is faster",
    side=tokens_per_second,
)
