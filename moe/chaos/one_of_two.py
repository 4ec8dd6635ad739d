"""One of two processes is killed or told to stop; the run goes on, with as many or fewer."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from moe.chaos.nonfinite import PLACES, break_steps
from moe.chaos.process import TRAIN, differences, leftovers, run_folder, train, wait
from moe.chaos.processes import (
    SPARSE,
    STEADY,
    Work,
    after,
    devices,
    kill_at,
    recorded,
    run,
    start,
    steps,
)
from moe.chaos.project import make_project
from moe.chaos.report import Report

STOP_SECONDS = 10.0  # in which both must be gone after SIGTERM


def other_counts(scratch: Path) -> Report:
    """Two processes, one is killed; on with one, stopped; on with two: each row as if unbroken."""
    report = Report(name="ranks")
    config = make_project(scratch, data=SPARSE, checkpoint_every=1)
    options = ["--config", config, *STEADY, "--trainer.val_check_interval", 20]
    whole, root = scratch / "whole", scratch / "broken"
    place = "--trainer.default_root_dir"
    parts = [
        (1, [], train(*options, place, whole), whole, [0]),
        (2, [kill_at(5, 1, signal.SIGKILL)], train(*options, *devices(2), place, root), root, None),
        (1, [kill_at(9, 0, signal.SIGTERM)], _resume(root, 1), root, [143]),
        (2, [], _resume(root, 2), root, [0, 0]),
    ]
    for at, (count, patches, training, folder, expected) in enumerate(parts):
        seen = folder / f"seen-{at}"
        log = scratch / f"{at}.log"
        codes = run(count, after([recorded(seen), *patches], training), log)
        right = codes == expected if expected else codes[1] == -signal.SIGKILL and codes[0] != 0
        report.case(f"part {at}", [] if right else [f"exit codes {codes}, see {log}"])
    if report.failed:
        return report
    found: dict[int, tuple[list[str], float]] = {}
    for at, (count, *_) in enumerate(parts[1:], 1):
        every = [steps(root / f"seen-{at}", number) for number in range(count)]
        for lines in zip(*every, strict=False):  # a killed rank did not write its last step
            rows = [row for line in lines for row in line["rows"]]
            found[lines[0]["step"]] = rows, lines[0]["loss"]
    for line in steps(whole / "seen-0", 0):
        rows, loss = found.get(line["step"], ([], 0.0))
        problems = [] if Counter(rows) == Counter(line["rows"]) else ["other rows"]
        problems += [] if abs(loss - line["loss"]) < 1e-4 * abs(loss) else [f"loss {loss}"]
        report.case(f"step {line['step']}", problems)
    return report


def _resume(root: Path, count: int) -> Work:
    return train("--resume", run_folder(root), *devices(count))


def stops_of_one(scratch: Path, stops: int = 10) -> Report:
    """SIGTERM to one of two: both save and end with 143 in ten seconds, and the resume is exact."""

    def stop(number: int, root: Path, options: list[object], later: float) -> list[str]:
        log = root.with_suffix(".log")
        workers = start(2, train(*options), log)
        _begun(root, later)
        os.kill(workers[number % 2], signal.SIGTERM)
        codes = [wait(worker, STOP_SECONDS) for worker in workers]
        return [] if codes == [143, 143] else [f"exit codes {codes}, see {log}"]

    return _stops(Report(name="sigterm-ranks"), scratch, stops, stop)


def stops_of_agent(scratch: Path, stops: int = 10) -> Report:
    """SIGTERM to torchrun: it ends with an error in ten seconds, and the resume is exact."""

    def stop(number: int, root: Path, options: list[object], later: float) -> list[str]:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", "2", str(TRAIN), *map(str, options)]
        environment = {**os.environ, "PYTHONPATH": str(TRAIN.parent), "OMP_NUM_THREADS": "1"}
        with root.with_suffix(".log").open("w") as log:
            agent = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        _begun(root, later)
        agent.terminate()
        try:
            code = agent.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            agent.wait()  # it kills its workers before it ends
            return [f"still there after {STOP_SECONDS} s"]
        return [] if code else ["ended with 0"]

    return _stops(Report(name="sigterm-agent"), scratch, stops, stop)


def _begun(root: Path, later: float) -> None:
    """Returns some seconds after the first write of a run."""
    while not (run_folder(root) / "checkpoints" / "last.ckpt").exists():
        time.sleep(0.01)
    time.sleep(later)


def _stops(
    report: Report,
    scratch: Path,
    stops: int,
    stop: Callable[[int, Path, list[object], float], list[str]],
) -> Report:
    """Runs that `stop` ends at random times are resumed, and compared with an unbroken one."""
    chance = random.Random(3)
    config = make_project(scratch, checkpoint_every=3)
    options = ["--config", config, *devices(2), "--trainer.default_root_dir"]
    begun = time.monotonic()
    codes = run(2, train(*options, scratch / "whole"), scratch / "whole.log")
    seconds = time.monotonic() - begun
    assert codes == [0, 0], f"the run ended with {codes}, see {scratch / 'whole.log'}"
    for number in range(stops):
        root, later = scratch / f"stop-{number}", chance.uniform(0.0, 0.3) * seconds
        problems = stop(number, root, [*options, root], later)
        codes = run(2, train("--resume", run_folder(root)), root.with_suffix(".log"))
        problems += [f"resumed with exit codes {codes}"] if any(codes) else []
        problems += differences(run_folder(scratch / "whole"), run_folder(root))
        report.case(root.name, problems + leftovers(run_folder(root)))
        shutil.rmtree(root, ignore_errors=True)
    return report


def nonfinite_on_one(scratch: Path, places: Sequence[str] = tuple(PLACES)) -> Report:
    """NaN on one of two processes in one step: both skip it, and end with the same weights."""
    report = Report(name="nonfinite-ranks")
    config = make_project(scratch)
    options = ["--config", config, *devices(2), "--trainer.max_steps", 8]
    options += ["--trainer.val_check_interval", 8, "--trainer.default_root_dir"]
    for place in places:
        root = scratch / place
        patches: list[Work] = [partial(_break_second, place), recorded(root / "seen")]
        log = scratch / f"{place}.log"
        codes = run(2, after(patches, train(*options, root)), log)
        if any(codes):
            report.case(place, [f"exit codes {codes}, see {log}"])
            continue
        saved = torch.load(run_folder(root) / "checkpoints" / "last.ckpt", weights_only=True)
        counted = saved["guard"] == {"skipped": 1, "in_a_row": 0} and saved["global_step"] == 8
        problems = [] if counted else [f"{saved['guard']} after {saved['global_step']} steps"]
        first, second = (torch.load(root / "seen" / f"weights-{n}.pt") for n in (0, 1))
        problems += [n for n in first if not torch.equal(first[n], second[n])]
        problems += [f"{n} is not finite" for n in first if not first[n].isfinite().all()]
        report.case(place, problems)
    return report


def _break_second(place: str) -> None:
    if os.environ["RANK"] == "1":
        break_steps(place, float("nan"), range(5, 6))
