"""Paired speed ratios: the same training steps with one thing changed, sides interleaved.

Each side of each round is a process of its own, so that allocator settings and caches of one side
cannot help the other.
"""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from moe.allocator import keep_freed_memory
from moe.encoder import build_encoder, encode_together

# MiniLM-L6's shape; the speed does not depend on the weights.
SHAPE = {"dim": 384, "hidden_dim": 1536, "n_heads": 12, "n_layers": 6}
# Rows and tokens of the micro-batches of one step, as `configs/local.yaml` has them.
STEP = ((5, 190), (4, 90), (18, 22), (22, 14), (18, 9))

# What each side of a case sets; everything else is as in training.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "allocator": ({"keep": True}, {"keep": False}),
    "attention_dropout": ({"attention_dropout": 0.0}, {"attention_dropout": 0.1}),
    "float32": ({"bf16": False}, {"bf16": True}),
    "together": ({"together": True}, {"together": False}),
}


def run_side(
    *,
    rows: int,
    tokens: int,
    steps: int,
    keep: bool = True,
    attention_dropout: float = 0.0,
    bf16: bool = False,
    together: bool | None = None,
) -> float:
    """Tokens per second of forward and backward passes of a bare encoder on the CPU.

    Args:
        rows: Rows of a micro-batch.
        tokens: Tokens of a row.
        steps: Passes; the first is not timed.
        keep: Whether `keep_freed_memory` is called first.
        attention_dropout: Probability of dropout on attention weights.
        bf16: Whether to compute in bfloat16.
        together: Whether the micro-batches of `STEP` are encoded together or one by one; None
            takes one of `rows` and `tokens`.
    """
    if keep:
        keep_freed_memory()
    torch.manual_seed(0)
    model = build_encoder({**SHAPE, "attention_dropout": attention_dropout}).train()
    shapes = ((rows, tokens),) if together is None else STEP
    blocks = [torch.randint(1, model.config.vocab_size, shape) for shape in shapes]
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


def _in_process(script: str, settings: dict[str, Any]) -> float:
    command = [sys.executable, script, "--side", json.dumps(settings)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(
    script: str,
    case: str,
    rounds: int,
    batch: tuple[int, int],
    measure: Callable[[str, dict[str, Any]], float] = _in_process,
) -> dict[str, Any]:
    """Ratio ours / baseline of one case over interleaved rounds, with its spread.

    Args:
        script: Program that runs one side, `scripts/benchmark.py`.
        case: A key of `CASES`.
        rounds: Pairs of processes.
        batch: Rows and tokens of a micro-batch.
        measure: Runs one side; for tests.
    """
    shape = {"rows": batch[0], "tokens": batch[1], "steps": 5}
    pairs = [[measure(script, shape | side) for side in CASES[case]] for _ in range(rounds)]
    ratios = sorted(ours / baseline for ours, baseline in pairs)
    return {
        "ratio": {"median": statistics.median(ratios), "min": ratios[0], "max": ratios[-1]},
        "ours": statistics.median(ours for ours, _ in pairs),
        "baseline": statistics.median(baseline for _, baseline in pairs),
    }


def setup() -> dict[str, Any]:
    """The machine and versions a figure belongs to."""
    return {
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "torch": torch.__version__,
        "unit": "tokens/s of forward and backward, MiniLM-L6's shape",
    }
