"""From measured metrics to a verdict on each."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from moe.bootstrap import Interval
from moe.release.suite import Rule, rules_text


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A metric of both sides.

    Attributes:
        name: `TASK/METRIC`, with `@PERTURBATION` if there is one.
        n: Rows.
        candidate, baseline: Values, None where a side was not measured.
        change: Candidate minus baseline; None without a baseline.
        ratio: Candidate over baseline, of metrics that are judged by it.
    """

    name: str
    n: int
    candidate: float
    baseline: float | None = None
    change: Interval | None = None
    ratio: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a rule says of a metric, or a check of something else.

    Attributes:
        name: Of the metric or the check.
        outcome: `passed`, `refused`, or `reported` where no rule judges it.
        reason: Why, with numbers.
        rule: In words.
        measured: The numbers, None of a check without any.
    """

    name: str
    outcome: str
    reason: str
    rule: str = ""
    measured: Measured | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def judge(measured: Measured, rule: Rule | None) -> Verdict:
    """The verdict of a rule on a metric; limits on a change need a baseline."""
    if rule is None:
        return Verdict(name=measured.name, outcome="reported", reason="no rule", measured=measured)
    refusals, doubts = _absolute(measured, rule), []
    for limit, found in _limits(measured, rule):
        state, reason = _against(limit, found)
        if state == "outside" or (state == "across" and rule.when_unsure == "refuse"):
            refusals.append(reason)
        elif state == "across":
            doubts.append(f"{reason}: passed by when_unsure")
    return Verdict(
        name=measured.name,
        outcome="refused" if refusals else "passed",
        reason="; ".join(refusals or doubts or ["within its limits"]),
        rule=rules_text(rule),
        measured=measured,
    )


def _absolute(measured: Measured, rule: Rule) -> list[str]:
    found, value = [], measured.candidate
    if math.isnan(value):
        found.append("not a number")
    if rule.min is not None and not value >= rule.min:
        found.append(f"{value:.4g} is below {rule.min:g}")
    if rule.max is not None and not value <= rule.max:
        found.append(f"{value:.4g} is above {rule.max:g}")
    return found


@dataclass(frozen=True, kw_only=True)
class _Limit:
    """What an interval must not exceed, and its name."""

    name: str
    most: float


def _limits(measured: Measured, rule: Rule) -> list[tuple[_Limit, Interval]]:
    found = []
    if rule.max_drop is not None and measured.change is not None:
        c = measured.change
        drop = Interval(value=-c.value, low=-c.high, high=-c.low)
        found.append((_Limit(name="fell by", most=rule.max_drop), drop))
    if rule.max_rise is not None and measured.change is not None:
        found.append((_Limit(name="rose by", most=rule.max_rise), measured.change))
    if rule.max_ratio is not None and measured.ratio is not None:
        found.append((_Limit(name="is times", most=rule.max_ratio), measured.ratio))
    return found


def _against(limit: _Limit, found: Interval) -> tuple[str, str]:
    """`inside`, `outside` or `across` a limit, and the reason in words."""
    numbers = f"{limit.name} {found.value:.4g} ({found.low:.4g} to {found.high:.4g})"
    if found.high <= limit.most:
        return "inside", numbers
    if found.low > limit.most:
        return "outside", f"{numbers}, allowed is {limit.most:g}"
    return "across", f"{numbers}, which does not show that it is within {limit.most:g}"
