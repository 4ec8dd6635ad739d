"""The checks by name, in their full size."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from moe.chaos.corruption import corruptions
from moe.chaos.events import events
from moe.chaos.hostile import refusals
from moe.chaos.kills import random_kills, random_stops
from moe.chaos.nonfinite import injections
from moe.chaos.one_of_two import nonfinite_on_one, other_counts, stops_of_agent, stops_of_one
from moe.chaos.parity import parity
from moe.chaos.process import fork, run_folder, train, wait
from moe.chaos.project import make_project
from moe.chaos.report import Report
from moe.chaos.resume import resume_matrix
from moe.chaos.shared_rows import evaluation_sizes
from moe.chaos.soak import soak


def _kills(scratch: Path) -> Report:
    """With TMPDIR in shared memory for every second run: another file system."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="chaos-") as elsewhere:
        return random_kills(scratch, elsewhere=Path(elsewhere) / "tmp")


def _hostile(scratch: Path) -> Report:
    config = make_project(scratch)
    code = wait(fork(train("--config", config, "--trainer.max_steps", 7), scratch / "log"))
    assert code == 0, f"the training ended with {code}, see {scratch / 'log'}"
    return refusals(scratch, run_folder(scratch / "runs") / "checkpoints" / "best.ckpt")


CHECKS: dict[str, Callable[[Path], Report]] = {
    "resume": resume_matrix,
    "sigkill": _kills,
    "corruption": corruptions,
    "sigterm": random_stops,
    "nonfinite": injections,
    "hostile": _hostile,
    "soak": soak,
    "parity": parity,
    "evaluation": evaluation_sizes,
    "ranks": other_counts,
    "sigterm-ranks": stops_of_one,
    "sigterm-agent": stops_of_agent,
    "nonfinite-ranks": nonfinite_on_one,
    "events": events,
}
