"""What `scripts/gate.py` does; each command prints its result and returns the exit code."""

from __future__ import annotations

from pathlib import Path

from moe.release.registry import Registry
from moe.types import InputError


def check(
    candidate: str,
    baseline: str | None,
    suite: str,
    root: str | None,
    report: str,
    device: str | None,
) -> int:
    """Judges, and writes the report; 1 if the candidate is refused."""
    from moe.release.check import check as judge
    from moe.release.report import summary, write_report

    path = Path(report).with_suffix("")
    judged = judge(candidate, baseline, suite, root=root, device=device)
    write_report(judged, path)
    print(summary(judged))
    print(f"report: {path}.md, {path}.json, {path}.xml")
    return 0 if judged.passed else 1


def promote(registry: str, candidate: str, report: str) -> int:
    """Makes a model current that passed."""
    from moe.release.sides import locate

    place, file = locate(candidate), Path(report).with_suffix(".json")
    version = Registry(registry).promote(place.path, file)
    print(f"{registry}: {version} is current")
    return 0


def rollback(registry: str, to: str | None) -> int:
    """Makes an earlier version current."""
    if not Path(registry).is_dir():
        raise InputError(f"--registry {registry}: no such folder")
    before, after = Registry(registry).rollback(to)
    print(f"{registry}: {after} is current, it was {before}")
    return 0
