"""Trainings of several forked processes, and a record of what each of them did.

The processes are as the workers of torchrun: gloo on the CPU, one thread each.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe.chaos.process import fork, wait
from moe.lit import LitMixture
from moe.ports import free_port
from moe.ranks import rank

Work = Callable[[], Any]
# One question a step, so that one of two ranks has no row for its expert; the better expert of each
# other task alone, so that some steps leave an expert idle on all ranks.
SPARSE = {
    "batch_size": 6,
    "mixing": {"kind": "fixed", "shares": {"mood": 3, "qa": 1, "intent": 2}},
}
STEADY = [
    *("--model.encoder.dropout", 0, "--model.encoder.attention_dropout", 0),
    *("--model.expert.dropout", 0, "--model.gate.train_top_k", 1),
    *("--model.loss.bias_rate", 0.01, "--optimizer.gradient_clip", 0),
]


# --- processes --------------------------------------------------------------------------------


def start(count: int, work: Work, log: Path) -> list[int]:
    """Forks the workers of a training on `count` processes; returns their process ids."""
    if count == 1:
        return [fork(work, log)]
    both = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "chaos",
    }
    return [
        fork(work, log, **both, RANK=str(number), LOCAL_RANK=str(number)) for number in range(count)
    ]


def run(count: int, work: Work, log: Path, seconds: float = 600.0) -> list[int]:
    """The exit codes of such a training."""
    return [wait(process, seconds) for process in start(count, work, log)]


def devices(count: int) -> list[object]:
    """What `train.py` must be told of `count` processes."""
    return ["--trainer.devices", count]


# --- what a training did ----------------------------------------------------------------------


def record(out: Path) -> None:
    """Writes what every process of this training does to files in `out`; for a forked child.

    `steps-RANK.jsonl`: of each step its number, loss, rows as strings of token ids, tasks, and
    groups that were encoded together;
    `gradients-RANK.pt`: of the first step; `weights-RANK.pt`: at the end.
    """
    out.mkdir(parents=True, exist_ok=True)
    step, sound = LitMixture.training_step, LitMixture._is_sound
    seen: dict[str, Any] = {}

    def training_step(self: LitMixture, batch: Any, number: int) -> None:
        seen["rows"] = [
            " ".join(map(str, ids[mask].tolist()))
            for part in batch.micro_batches
            for ids, mask in zip(part.input_ids, part.attention_mask, strict=True)
        ]
        seen["tasks"] = sorted({t for part in batch.micro_batches for t in part.task_ids.tolist()})
        groups = batch.together(self.config.data.max_tokens)
        seen["groups"] = sum(map(bool, groups))
        step(self, batch, number)

    def is_sound(self: LitMixture, total: Any, norm: Tensor) -> bool:
        line = {"step": self.trainer.global_step, "loss": float(total["loss"]), **seen}
        with (out / f"steps-{rank()}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        gradients = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        if self.trainer.global_step == 0:
            torch.save(gradients, out / f"gradients-{rank()}.pt")
        idle = [name for name in self.model.expert_names
                if not any(n.startswith(f"experts.{name}.") for n in gradients)]  # fmt: skip
        with (out / f"idle-{rank()}").open("a") as file:
            file.write(json.dumps(idle) + "\n")
        return sound(self, total, norm)

    def on_train_end(self: LitMixture) -> None:
        torch.save(self.model.state_dict(), out / f"weights-{rank()}.pt")

    LitMixture.training_step = training_step  # type: ignore[assignment, method-assign]
    LitMixture._is_sound = is_sound  # type: ignore[assignment, method-assign]
    LitMixture.on_train_end = on_train_end  # type: ignore[assignment, method-assign]


def recorded(out: Path) -> Work:
    """`record`, as something to run in a child before its training."""
    return partial(record, out)


def steps(out: Path, number: int) -> list[dict[str, Any]]:
    """Lines of `steps-RANK.jsonl`; of a step that was done again the last one counts."""
    lines = (out / f"steps-{number}.jsonl").read_text().splitlines()
    found = {line["step"]: line for line in map(json.loads, lines)}
    return [found[step] for step in sorted(found)]


def after(first: Sequence[Work], then: Work) -> Work:
    """One thing after the others."""

    def work() -> None:
        for one in first:
            one()
        then()

    return work


def kill_at(step: int, number: int, sent: signal.Signals) -> Work:
    """Sends the rank `number` a signal when it begins a step; to be run in a child before."""

    def patch() -> None:
        run_step = LitMixture.training_step

        def training_step(self: LitMixture, *arguments: Any) -> None:
            if self.trainer.global_step == step and rank() == number:
                os.kill(os.getpid(), sent)
            run_step(self, *arguments)

        LitMixture.training_step = training_step  # type: ignore[assignment, method-assign]

    return patch
