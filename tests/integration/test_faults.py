"""Signals, numbers that are none and broken files in whole trainings of 8 steps.

An epoch has 6 steps; every third is saved, every fourth is validated and saved.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moe.chaos.nonfinite import PLACES
from moe.chaos.process import differences, leftovers, run_folder
from moe.lit import LitMixture
from moe.tensors import first_non_finite

ROOT = Path(__file__).parents[2]
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def unbroken(project: Path, run: Run) -> Path:
    root = project / "unbroken"
    run("train.py", *options(project, root))
    return run_folder(root)


def options(project: Path, root: Path) -> list[object]:
    return ["--config", project / "tiny.yaml", "--trainer.default_root_dir", root]


def saved(folder: Path, name: str = "last.ckpt") -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / name, weights_only=True)


def send(patch: pytest.MonkeyPatch, hook: str, step: int, number: signal.Signals) -> None:
    """Sends this process a signal when it begins `hook` in an optimizer step."""
    method = getattr(LitMixture, hook)

    def sending(self: LitMixture, *arguments: Any) -> Any:
        if self.trainer.global_step == step:
            os.kill(os.getpid(), number)
        return method(self, *arguments)

    patch.setattr(LitMixture, hook, sending)


@pytest.mark.parametrize(("hook", "step", "number", "code", "written"), [
    pytest.param("training_step", 0, signal.SIGTERM, 143, 1, marks=pytest.mark.slow),
    ("training_step", 4, signal.SIGINT, 130, 5),
    pytest.param(  # the last step of an epoch
        "training_step", 5, signal.SIGTERM, 143, 6, marks=pytest.mark.slow),
    pytest.param(  # a validation would follow
        "training_step", 3, signal.SIGTERM, 143, 3, marks=pytest.mark.slow),
    ("validation_step", 4, signal.SIGTERM, 143, 3),
])  # fmt: skip
def test_a_signal_saves_and_the_resumed_run_is_the_unbroken_one(
    unbroken: Path, project: Path, run: Run, hook: str, step: int, number: signal.Signals,
    code: int, written: int,
) -> None:  # fmt: skip
    root = project / f"stop-{hook}-{step}"
    with pytest.MonkeyPatch.context() as patch:
        send(patch, hook, step, number)
        done = run("train.py", *options(project, root), code=code)
    folder = run_folder(root)
    assert f"stopped; go on with: python train.py --resume {folder}" in done.stdout
    assert saved(folder)["global_step"] == written
    run("train.py", "--resume", folder)
    assert differences(unbroken, folder) == []
    assert leftovers(folder) == []


@pytest.mark.slow
def test_a_signal_to_a_real_process(project: Path, run: Run, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "train.py", *options(project, tmp_path / "runs")]
    command += ["--trainer.max_steps", 10_000, "--checkpoint_every", 1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            list(map(str, command)), stdout=log, stderr=log, env=environment, cwd=tmp_path
        )
        last = run_folder(tmp_path / "runs") / "checkpoints" / "last.ckpt"
        while not last.exists() and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143, (tmp_path / "log").read_text()[-2000:]
    assert "SIGTERM: stopping after this step" in (tmp_path / "log").read_text()
    assert leftovers(last.parent.parent) == []
    assert saved(last.parent.parent)["global_step"] >= 1


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (min(PLACES), float("nan")),
        *(pytest.param(p, float("nan"), marks=pytest.mark.slow) for p in sorted(PLACES)[1:]),
        *(pytest.param(p, float("inf"), marks=pytest.mark.slow) for p in PLACES),
    ],
)
def test_one_step_that_is_not_finite_is_skipped(
    project: Path, run: Run, place: str, value: float
) -> None:
    root = project / f"once-{place}-{value}"
    before: dict[str, torch.Tensor] = {}
    step = LitMixture.training_step

    def broken(self: LitMixture, *arguments: Any) -> None:
        if self.trainer.global_step != 5:
            step(self, *arguments)
            return
        before.update({k: v.clone() for k, v in self.model.state_dict().items()})
        with PLACES[place](self, value):
            step(self, *arguments)
        after = self.model.state_dict()
        assert all(torch.equal(after[name], before[name]) for name in before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LitMixture, "training_step", broken)
        done = run("train.py", *options(project, root))
    assert before and "step 5: loss" in done.stdout and ": skipped" in done.stdout
    state = saved(run_folder(root))
    assert state["guard"] == {"skipped": 1, "in_a_row": 0} and state["global_step"] == 8
    assert first_non_finite(state["state_dict"]) is None
    assert logged(run_folder(root), "optimizer/skipped_steps") == [0, 0, 1, 1]


def logged(folder: Path, tag: str) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.value for event in events.Scalars(tag)]


def test_too_many_in_a_row_end_with_code_3(project: Path, run: Run) -> None:
    root = project / "always"
    step = LitMixture.training_step

    def broken(self: LitMixture, *arguments: Any) -> None:
        if self.trainer.global_step < 2:
            step(self, *arguments)
        else:
            with PLACES["loss"](self, float("nan")):
                step(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LitMixture, "training_step", broken)
        done = run("train.py", *options(project, root), "--optimizer.max_skipped", 3, code=3)
    message = "error: optimizer step 4: loss nan, gradient norm nan, the last of 3 such steps"
    assert message in done.stderr
    state = saved(run_folder(root))
    assert state["global_step"] == 4 and state["guard"] == {"skipped": 2, "in_a_row": 2}
    assert first_non_finite(state["state_dict"]) is None


def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    unbroken: Path, project: Path, run: Run
) -> None:
    root = project / "damaged"
    with pytest.MonkeyPatch.context() as patch:
        send(patch, "training_step", 6, signal.SIGTERM)
        run("train.py", *options(project, root), code=143)
    folder = run_folder(root)
    assert (saved(folder)["global_step"], saved(folder, "last-1.ckpt")["global_step"]) == (7, 6)
    last = folder / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    done = run("train.py", "--resume", folder)
    assert "last.ckpt: damaged" in done.stdout and "of optimizer step 6" in done.stdout
    assert differences(unbroken, folder) == []


def test_a_run_killed_after_its_last_step_gets_its_result(
    unbroken: Path, project: Path, run: Run
) -> None:
    result = unbroken / "result.json"
    text = result.read_text()
    result.unlink()
    assert "nothing to do" in run("train.py", "--resume", unbroken).stdout
    assert '"minutes": null' in result.read_text() and '"steps": 8' in result.read_text()
    result.write_text(text)


def test_patience_ends_a_run_for_good(project: Path, run: Run) -> None:
    root = project / "patience"
    arguments = ("--patience", 1, "--trainer.max_steps", 40, "--optimizer.encoder_lr", 0,
                 "--optimizer.expert_lr", 0, "--optimizer.gate_lr", 0)  # fmt: skip
    run("train.py", *options(project, root), *arguments)
    folder = run_folder(root)
    assert saved(folder)["global_step"] == 8  # the validation of step 8 found nothing better
    assert "nothing to do" in run("train.py", "--resume", folder).stdout
