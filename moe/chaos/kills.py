"""SIGKILL and SIGTERM at random times."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from moe.chaos.process import (
    differences,
    finish,
    fork,
    kill_group,
    leftovers,
    run_folder,
    train,
    wait,
)
from moe.chaos.project import make_project
from moe.chaos.report import Report

KILLS_PER_RUN = 5
STOP_SECONDS = 10.0  # in which a process must be gone after SIGTERM


def _unbroken(scratch: Path) -> tuple[list[object], float]:
    """A finished run in `whole/` to compare with: its options, and its seconds."""
    config = make_project(scratch, checkpoint_every=1)
    options: list[object] = ["--config", config, "--trainer.default_root_dir"]
    start = time.monotonic()
    code = wait(fork(train(*options, scratch / "whole"), scratch / "log"))
    assert code == 0, f"the unbroken run ended with {code}, see {scratch / 'log'}"
    return options, time.monotonic() - start


def _begin_or_resume(options: list[object], root: Path) -> Any:
    begun = (run_folder(root) / "config.yaml").is_file()
    return train("--resume", run_folder(root)) if begun else train(*options, root)


def random_kills(scratch: Path, kills: int = 50, elsewhere: Path | None = None) -> Report:
    """SIGKILL at random times, the same command again each time, until the run is done.

    A case is a kill: it passed if the run it hit went on unaided to the state of an unbroken run.

    Args:
        scratch: Where to work.
        kills: In all, five for each run.
        elsewhere: A folder on another file system, `TMPDIR` of every second run.
    """
    report, chance = Report(name="sigkill"), random.Random(0)
    options, seconds = _unbroken(scratch)
    for number in range(0, kills, KILLS_PER_RUN):
        root, environment = scratch / f"run-{number}", {}
        if elsewhere is not None and number % (2 * KILLS_PER_RUN):
            elsewhere.mkdir(parents=True, exist_ok=True)
            environment = {"TMPDIR": str(elsewhere)}
        for _ in range(min(KILLS_PER_RUN, kills - number)):
            log = root.with_suffix(".log")
            process = fork(_begin_or_resume(options, root), log, **environment)
            time.sleep(chance.uniform(0.05, 0.7) * seconds)
            kill_group(process)
            wait(process)
        problems = _ends_like(scratch, options, root, environment)
        if elsewhere is not None and elsewhere.exists() and any(elsewhere.iterdir()):
            problems.append(f"left in TMPDIR: {sorted(p.name for p in elsewhere.iterdir())}")
        for _ in range(min(KILLS_PER_RUN, kills - number)):
            report.case(root.name, problems)
        shutil.rmtree(root, ignore_errors=True)
    return report


def _ends_like(
    scratch: Path, options: list[object], root: Path, environment: dict[str, str]
) -> list[str]:
    log = root.with_suffix(".log")
    code = wait(fork(_begin_or_resume(options, root), log, **environment))
    if code:
        return [f"restarted with exit code {code}, see {log}"]
    torn = [line for line in log.read_text(errors="replace").splitlines() if "damaged" in line]
    folder = run_folder(root)
    return torn + leftovers(folder) + differences(run_folder(scratch / "whole"), folder)


def random_stops(scratch: Path, stops: int = 20) -> Report:
    """SIGTERM at random times to one process: exit code 143 in ten seconds, and an exact resume."""
    report, chance = Report(name="sigterm"), random.Random(1)
    options, seconds = _unbroken(scratch)
    slowest = 0.0
    for number in range(stops):
        root = scratch / f"stop-{number}"
        log = root.with_suffix(".log")
        process = fork(train(*options, root), log)
        last = run_folder(root) / "checkpoints" / "last.ckpt"
        while not last.exists():  # from the first write on
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.4) * seconds)
        kill_at = time.monotonic()
        os.kill(process, signal.SIGTERM)
        code = wait(process, STOP_SECONDS)
        slowest = max(slowest, time.monotonic() - kill_at)
        problems = [] if code in (143, 0) else [f"exit code {code}, see {log}"]
        if code == 0:
            problems.append("was done before the signal came")
        resumed = finish(run_folder(root), log)
        problems += [f"resumed with exit code {resumed}"] if resumed else []
        problems += differences(run_folder(scratch / "whole"), run_folder(root))
        report.case(root.name, problems + leftovers(run_folder(root)))
        shutil.rmtree(root, ignore_errors=True)
    report.numbers["slowest_seconds"] = round(slowest, 2)
    return report
