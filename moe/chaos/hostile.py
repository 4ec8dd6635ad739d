"""Checkpoints made to harm, and what loading them costs."""

from __future__ import annotations

import json
import resource
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from moe.chaos.hostile_folders import FOLDERS
from moe.chaos.hostile_values import VALUES
from moe.chaos.hostile_zips import ZIPS
from moe.chaos.process import fork, wait
from moe.chaos.report import Report
from moe.checkpoint import load_bundle, save_bundle
from moe.types import InputError

MOST_SECONDS, MOST_BYTES = 2.0, 300 * 10**6  # to refuse a file
Maker = Callable[[Path, Path, Path], Path]


def makers() -> dict[str, Maker]:
    """By name: makes a hostile checkpoint.

    Each is called with a whole `.ckpt`, a whole model folder and an empty folder, and returns what
    to load. What it would do if it were run is to create a file `HARM` in that empty folder.
    """
    kinds = {"file": ZIPS, "content": VALUES, "folder": FOLDERS}
    return {f"{kind}: {n}": m for kind, made in kinds.items() for n, m in made.items()}


def refusals(scratch: Path, checkpoint: Path) -> Report:
    """Each hostile checkpoint is refused in time, in little memory, and without an effect.

    Args:
        scratch: Where to work.
        checkpoint: A whole one, best small.
    """
    report = Report(name="hostile")
    folder = scratch / "model"
    save_bundle(load_bundle(checkpoint), folder)
    slowest = largest = 0.0
    for name, make in makers().items():
        place = scratch / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        hostile = make(checkpoint, folder, place)
        out = scratch / "out.json"
        out.unlink(missing_ok=True)
        wait(fork(partial(measure, hostile, out), scratch / "log"), 60.0)
        found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"refused": None}
        problems = [] if found["refused"] else ["was not refused, or ended the process"]
        if found["refused"]:
            slowest, largest = max(slowest, found["seconds"]), max(largest, found["bytes"])
            problems += [] if found["seconds"] < MOST_SECONDS else [f"{found['seconds']:.1f} s"]
            problems += [] if found["bytes"] < MOST_BYTES else [f"{found['bytes']:.0f} bytes"]
        problems += ["had an effect"] if list(scratch.rglob("HARM")) else []
        report.case(name, problems)
    report.numbers = {"slowest_seconds": round(slowest, 2), "most_megabytes": round(largest / 1e6)}
    return report


def measure(path: Path, out: Path) -> None:
    """Loads a checkpoint; writes what was said, seconds, and how far memory grew."""
    before, start = _peak(), time.monotonic()
    found: dict[str, Any] = {"refused": None}
    try:
        load_bundle(path)
    except InputError as error:
        found["refused"] = str(error)
    seconds = time.monotonic() - start
    out.write_text(json.dumps({**found, "seconds": seconds, "bytes": _peak() - before}))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
