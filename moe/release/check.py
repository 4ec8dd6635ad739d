"""Judges a candidate against a baseline by a suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moe.release.canaries import judge_canaries, read_canaries
from moe.release.measuring import (
    SideMetrics,
    compare,
    compare_experts,
    measure_latency,
    measure_side,
    measure_size,
)
from moe.release.rows import SuiteRows, read_rows
from moe.release.rules import Measured, Verdict, judge
from moe.release.sides import Side, load_place, load_side, locate
from moe.release.structure import judge_finite, judge_structure
from moe.release.suite import Suite, load_suite, suite_hash
from moe.types import InputError


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the gate says.

    Attributes:
        candidate: What was judged: source, backend, precision, hash, size in bytes.
        baseline: What it was compared with, None without.
        verdicts: Of structure, canaries and metrics.
        canaries: The canaries, for the registry.
        suite: File and SHA-256 of the suite.
        time: When, UTC.
    """

    candidate: dict[str, Any]
    baseline: dict[str, Any] | None
    verdicts: list[Verdict]
    canaries: list[dict[str, Any]] = field(default_factory=list)
    suite: dict[str, str] = field(default_factory=dict)
    time: str = ""

    @property
    def refused(self) -> list[Verdict]:
        """The verdicts that refuse."""
        return [verdict for verdict in self.verdicts if verdict.outcome == "refused"]

    @property
    def passed(self) -> bool:
        """Whether no verdict refuses."""
        return not self.refused


def check(
    candidate: str,
    baseline: str | None,
    suite: str | Path,
    *,
    root: str | None = None,
    device: str | None = None,
) -> Report:
    """Judges a candidate; one that cannot be loaded or fails while it answers is refused.

    Args:
        candidate: A side (`moe.release.sides`).
        baseline: Another; None judges by absolute limits and canaries alone.
        suite: YAML file.
        root: Folder of relative sources instead of the suite's own.
        device: Of torch models; None takes a GPU if there is one.

    Raises:
        InputError: The suite is wrong, its rows or one of the sides are not there, or the
            baseline cannot be loaded.
    """
    rules = load_suite(suite)
    canaries = []
    if rules.canaries is not None:
        canaries = read_canaries(Path(suite).parent / rules.canaries)
    place = locate(candidate)
    rows = read_rows(rules, root)
    theirs = None if baseline is None else load_side(baseline, device)
    about: dict[str, Any] = {
        "canaries": canaries,
        "suite": {"file": str(suite), "sha256": suite_hash(suite)},
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "baseline": None if theirs is None else theirs.describe(),
    }
    try:
        ours = load_place(place, candidate, device)
    except InputError as error:
        return Report(candidate=_unread(candidate), verdicts=[broken("loads", error)], **about)
    rules.check_rules(ours.experts)
    verdicts = check_sides(ours, theirs, rules, rows, canaries)
    return Report(candidate=ours.describe(), verdicts=verdicts, **about)


def _unread(source: str) -> dict[str, Any]:
    return {"source": source, "backend": None, "precision": None, "hash": None, "size": None}


def broken(what: str, error: Exception) -> Verdict:
    """What refuses a candidate that raised an error."""
    reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return Verdict(name=f"structure/{what}", outcome="refused", reason=reason)


def check_sides(
    candidate: Side,
    baseline: Side | None,
    suite: Suite,
    rows: SuiteRows,
    canaries: Sequence[dict[str, Any]] = (),
    theirs: SideMetrics | None = None,
) -> list[Verdict]:
    """All verdicts on two loaded sides.

    Args:
        candidate: Is judged.
        baseline: What it is compared with, None without.
        suite: What is measured, and what is allowed.
        rows: Of the suite.
        canaries: Must-pass requests.
        theirs: What the baseline was measured to be, if it was; None measures it.
    """
    verdicts = judge_structure(candidate, baseline, suite.structure)
    missing = sorted(set(suite.tasks) - {task.name for task in candidate.model.tasks})
    if missing:
        reason = f"the suite judges {missing}, which the candidate lacks"
        return [*verdicts, Verdict(name="structure/judged", outcome="refused", reason=reason)]
    try:
        ours = measure_side(candidate, rows, suite)
    except Exception as error:  # of whatever a damaged model does
        return [*verdicts, broken("answers", error)]
    if baseline is not None and theirs is None:
        theirs = measure_side(baseline, rows, suite)
    verdicts.append(judge_finite(ours.asked))
    verdicts += judge_canaries(candidate.model, canaries)
    measured = _measured(candidate, baseline, ours, theirs, suite, rows)
    return verdicts + [judge(metric, suite.rule(metric.name)) for metric in measured]


def _measured(
    candidate: Side,
    baseline: Side | None,
    ours: SideMetrics,
    theirs: SideMetrics | None,
    suite: Suite,
    rows: SuiteRows,
) -> list[Measured]:
    family = suite.family(candidate.experts)
    found = compare(ours, theirs, suite, family)
    found += compare_experts(ours, theirs, rows, suite, family)
    if suite.latency is not None:
        found += measure_latency(candidate, baseline, rows, suite.latency, suite, family)
    return [*found, measure_size(candidate, baseline)]
