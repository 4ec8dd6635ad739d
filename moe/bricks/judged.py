"""A changed model is written only if the evaluation gate passes it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from moe.checkpoint import Bundle, save_checkpoint
from moe.release.check import Report, check
from moe.release.report import write_report
from moe.release.rows import read_rows
from moe.release.sides import locate
from moe.release.suite import load_suite


def report_of(out: Path) -> Path:
    """Where the report on a checkpoint goes, without its suffix: `new.ckpt` has `new-gate.json`."""
    return out.with_name(f"{out.stem}-gate")


def check_question(baseline: str, suite: str, root: str | None = None) -> None:
    """Finds mistakes in what the gate will be asked, before a training is spent on it.

    Raises:
        InputError: The suite or its rows cannot be read, or there is no such baseline.
    """
    locate(baseline)
    read_rows(load_suite(suite), root)


def save_if_passed(
    bundle: Bundle, out: Path, *, baseline: str, suite: str, root: str | None = None
) -> Report:
    """Judges a model as the file that it would be, and leaves that file if it passed.

    The report is written in either case, and before the file, so that there is none without one.

    Args:
        bundle: The candidate.
        out: The checkpoint to write.
        baseline: What it is compared with (`moe.release.sides`).
        suite: YAML file.
        root: Folder of relative sources instead of the suite's own.

    Raises:
        InputError: The suite is wrong, or something cannot be read or written.
    """
    waiting = out.with_name(f".{out.stem}.{os.getpid()}.ckpt")
    try:
        save_checkpoint(bundle, waiting)
        report = check(str(waiting), baseline, suite, root=root)
        report = replace(report, candidate={**report.candidate, "source": str(out)})
        write_report(report, report_of(out))
        if report.passed:
            os.replace(waiting, out)
    finally:
        waiting.unlink(missing_ok=True)
    return report
