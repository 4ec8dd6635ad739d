"""Stopped and gone on with: whether the whole last checkpoint is that of an unbroken run."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

from moe.chaos.process import differences, finish, fork, leftovers, run_folder, train, wait
from moe.chaos.project import make_project
from moe.chaos.report import Report
from moe.lit import LitMixture

# An epoch has 6 steps; there are 20, with a validation after steps 7 and 14.
CUTS = {"first step": 1, "mid-epoch": 4, "epoch end": 6, "after validation": 7}


def cut_after(step: int) -> None:
    """Makes training raise when it begins the step after this one; for a forked child."""
    run = LitMixture.training_step

    def cut(self: LitMixture, *arguments: object) -> None:
        if self.trainer.global_step == step:
            raise RuntimeError("power cut")
        run(self, *arguments)  # type: ignore[arg-type]

    LitMixture.training_step = cut  # type: ignore[assignment, method-assign]


def resume_matrix(scratch: Path) -> Report:
    """Cut at four steps, with 0 and 2 workers, accumulating 1 and 3 times, with dropout."""
    report = Report(name="resume")
    config = make_project(scratch, checkpoint_every=1)
    for workers, accumulate in product((0, 2), (1, 3)):
        options = ["--config", config, "--data.workers", workers]
        options += ["--trainer.accumulate_grad_batches", accumulate]
        options += ["--data.batch_size", 24 // accumulate, "--trainer.default_root_dir"]
        whole = scratch / f"whole-{workers}-{accumulate}"
        wait(fork(train(*options, whole), scratch / "log"))
        for name, step in CUTS.items():
            root = scratch / f"cut-{workers}-{accumulate}-{step}"
            report.case(f"{name}, {workers} workers, accumulate {accumulate}",
                        _cut_and_resume(options, root, run_folder(whole), step))  # fmt: skip
            shutil.rmtree(root, ignore_errors=True)
    return report


def _cut_and_resume(options: list[object], root: Path, whole: Path, step: int) -> list[str]:
    def work() -> None:
        cut_after(step)
        train(*options, root)()

    log = root.with_suffix(".log")
    if wait(fork(work, log)) != 1:
        return ["was not cut"]
    code = finish(run_folder(root), log)
    if code:
        return [f"resumed with exit code {code}, see {log}"]
    return differences(whole, run_folder(root)) + leftovers(run_folder(root))
