"""NaN and infinity put into losses, gradients and activations of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe.chaos.process import fork, leftovers, run_folder, train, wait
from moe.chaos.project import make_project
from moe.chaos.report import Report
from moe.checkpoint_reading import TRAINED
from moe.lit import LitMixture
from moe.tensors import first_non_finite

STEPS, FIRST = 20, 5  # of the run, and the first that is broken


@contextmanager
def broken_loss(lit: LitMixture, value: float) -> Iterator[None]:
    """Every loss times `value`."""
    run = lit.step_loss.micro_batch

    def broken(*arguments: Any) -> Any:
        loss, sums, logged = run(*arguments)
        return loss * value, sums, {**logged, "loss": logged["loss"] * value}

    lit.step_loss.micro_batch = broken  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        del lit.step_loss.micro_batch


@contextmanager
def broken_gradient(lit: LitMixture, value: float) -> Iterator[None]:
    """The gradient of one weight of the gate times `value`; the loss stays finite."""
    weight = next(lit.model.gate.parameters())
    handle = weight.register_hook(lambda gradient: gradient * value)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def broken_activation(lit: LitMixture, value: float) -> Iterator[None]:
    """The embeddings of the first row of each micro-batch are `value`."""

    def broken(module: Any, inputs: Any, output: Tensor) -> Tensor:
        return output.index_fill(0, torch.tensor([0], device=output.device), value)

    handle = lit.model.encoder.embeddings.register_forward_hook(broken)
    try:
        yield
    finally:
        handle.remove()


PLACES: dict[str, Callable[[LitMixture, float], AbstractContextManager[None]]] = {
    "loss": broken_loss,
    "gradient": broken_gradient,
    "activation": broken_activation,
}


def break_steps(place: str, value: float, steps: range) -> None:
    """Makes some steps of every training of this process non-finite; for a forked child."""
    run = LitMixture.training_step

    def step(self: LitMixture, *arguments: Any) -> None:
        if self.trainer.global_step not in steps:
            run(self, *arguments)
            return
        with PLACES[place](self, value):
            run(self, *arguments)

    LitMixture.training_step = step  # type: ignore[assignment, method-assign]


def injections(scratch: Path) -> Report:
    """NaN and infinity in three places, in one step and in all: skipped, or stopped with code 3."""
    report = Report(name="nonfinite")
    config = make_project(scratch)
    for place, value, always in product(PLACES, (float("nan"), float("inf")), (False, True)):
        name = f"{place} {value} {'in every step' if always else 'once'}"
        root = scratch / name.replace(" ", "-")
        steps = range(FIRST, STEPS if always else FIRST + 1)

        def work(place: str = place, value: float = value, steps: range = steps,
                 root: Path = root) -> None:  # fmt: skip
            break_steps(place, value, steps)
            train("--config", config, "--trainer.default_root_dir", root)()

        code = wait(fork(work, root.with_suffix(".log")))
        report.case(name, _problems(run_folder(root), code, always))
    return report


def _problems(folder: Path, code: int, always: bool) -> list[str]:
    expected = 3 if always else 0
    if code != expected:
        return [f"exit code {code}, expected {expected}"]
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    found = first_non_finite({k: saved[k] for k in TRAINED})
    problems = [] if found is None else [f"{found} is not finite"]
    if not always and (saved["guard"]["skipped"], saved["global_step"]) != (1, STEPS):
        problems.append(f"{saved['guard']} after {saved['global_step']} steps")
    return problems + leftovers(folder)
