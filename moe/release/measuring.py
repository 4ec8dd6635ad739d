"""A suite's metrics of both sides, with intervals.

Dimensions: N rows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from moe.bootstrap import Interval, paired_interval, ratio
from moe.decode import Floats
from moe.release.rows import SuiteRows, perturbed
from moe.release.rules import Measured
from moe.release.scores import (
    Answers,
    Gold,
    Metric,
    expert_of,
    routing_metrics,
    task_metrics,
    task_scores,
)
from moe.release.sides import Side
from moe.release.suite import Latency, Suite

MIN_EXPERT_ROWS = 20  # an expert that fewer rows reach is not judged by them


@dataclass(frozen=True, kw_only=True)
class SideMetrics:
    """What one side was measured to be.

    Attributes:
        metrics: By name.
        clean: The answers to the rows of each task as they are.
        asked: All answers, of whatever rows.
    """

    metrics: dict[str, Metric]
    clean: dict[str, Answers] = field(default_factory=dict)
    asked: list[dict[str, object]] = field(default_factory=list)


def measure_side(side: Side, rows: SuiteRows, suite: Suite) -> SideMetrics:
    """Asks one side everything in the suite but for its canaries."""
    found = SideMetrics(metrics={})
    for task, gold in rows.tasks.items():
        found.clean[task] = _ask(side, gold, found)
        _add(found, task, suite, gold, found.clean[task], "")
        for kind in suite.perturbations:
            changed = perturbed(gold, kind, suite)
            _add(found, task, suite, changed, _ask(side, changed, found), f"@{kind}")
    if rows.routing:
        requests = [{"text": row.text, "context": row.context} for row in rows.routing]
        answers = side.model.predict(requests)
        found.asked.extend(answers)
        for name, metric in routing_metrics([row.tasks for row in rows.routing], answers).items():
            found.metrics[f"routing/{name}"] = metric
    return found


def _ask(side: Side, gold: Sequence[Gold], found: SideMetrics) -> Answers:
    answers: Answers = side.model.predict([row.request for row in gold])
    found.asked.extend(answers)  # type: ignore[arg-type]
    return answers


def _add(
    found: SideMetrics, task: str, suite: Suite, gold: Sequence[Gold], answers: Answers, mark: str
) -> None:
    judged = suite.tasks[task]
    metrics = task_metrics(
        task, judged.type == "span", judged.out_of_scope is not None, gold, answers
    )
    wanted = set(suite.metrics())
    for name, metric in metrics.items():
        if f"{task}/{name}{mark}" in wanted and len(metric.rows_N):
            found.metrics[f"{task}/{name}{mark}"] = metric


def compare(
    candidate: SideMetrics, baseline: SideMetrics | None, suite: Suite, family: int
) -> list[Measured]:
    """Every metric of the candidate, beside the baseline's if there is one.

    Args:
        candidate, baseline: What they were measured to be.
        suite: How intervals are made.
        family: `Suite.family` of the candidate.
    """
    found = []
    for name, ours in candidate.metrics.items():
        theirs = None if baseline is None else baseline.metrics.get(name)
        found.append(_measured(name, ours, theirs, suite, family))
    return found


def _measured(
    name: str, ours: Metric, theirs: Metric | None, suite: Suite, family: int
) -> Measured:
    change = None
    if theirs is not None:
        change = paired_interval(
            ours.rows_N,
            theirs.rows_N,
            statistic=ours.statistic,
            confidence=suite.confidence_of(name, family),
            draws=suite.draws,
            seed=suite.seed,
        )
    return Measured(
        name=name,
        n=len(ours.rows_N),
        candidate=ours.value,
        baseline=None if theirs is None else theirs.value,
        change=change,
    )


def compare_experts(
    candidate: SideMetrics,
    baseline: SideMetrics | None,
    rows: SuiteRows,
    suite: Suite,
    family: int,
) -> list[Measured]:
    """By expert of the candidate: the scores of the rows that it answered, on both sides.

    One expert that fails among several is a small part of its task's score.
    """
    found = []
    for task, gold in rows.tasks.items():
        is_span = suite.tasks[task].type == "span"
        who = np.array([expert_of(task, answer) or "" for answer in candidate.clean[task]])
        ours_N = task_scores(task, is_span, gold, candidate.clean[task])
        theirs_N = None
        if baseline is not None:
            theirs_N = task_scores(task, is_span, gold, baseline.clean[task])
        for name in sorted({*who.tolist()} - {""}):
            mine = who == name
            if mine.sum() >= MIN_EXPERT_ROWS:
                theirs = None if theirs_N is None else Metric(rows_N=theirs_N[mine])
                metric = Metric(rows_N=ours_N[mine])
                found.append(_measured(f"expert/{name}", metric, theirs, suite, family))
    return found


def measure_latency(
    candidate: Side,
    baseline: Side | None,
    rows: SuiteRows,
    latency: Latency,
    suite: Suite,
    family: int,
) -> list[Measured]:
    """Milliseconds of single requests, each asked of both sides in turn."""
    gold = [row for rows_of in rows.tasks.values() for row in rows_of]
    order = np.random.default_rng(suite.seed).permutation(len(gold))[: latency.requests]
    requests = [gold[i].request for i in order]
    sides = [candidate] if baseline is None else [candidate, baseline]
    times_SN = np.full((len(sides), len(requests)), np.inf)
    for _ in range(latency.repeats):
        for row, request in enumerate(requests):
            for number, side in enumerate(sides):
                start = time.perf_counter()
                side.model.predict(dict(request))
                took = 1e3 * (time.perf_counter() - start)
                times_SN[number, row] = min(times_SN[number, row], took)
    return [
        _timed("latency/median_ms", times_SN, 0.5, suite, family),
        _timed("latency/p95_ms", times_SN, 0.95, suite, family),
    ]


def _timed(name: str, times_SN: Floats, quantile: float, suite: Suite, family: int) -> Measured:
    def statistic(rows_DN: Floats) -> Floats:
        return np.quantile(rows_DN, quantile, axis=1)

    found, values = None, statistic(times_SN).tolist()
    if len(times_SN) > 1:
        found = paired_interval(
            times_SN[0],
            times_SN[1],
            statistic=statistic,
            compare=ratio,
            confidence=suite.confidence_of(name, family),
            draws=suite.draws,
            seed=suite.seed,
        )
    return Measured(
        name=name,
        n=times_SN.shape[1],
        candidate=values[0],
        baseline=values[1] if len(times_SN) > 1 else None,
        ratio=found,
    )


def measure_size(candidate: Side, baseline: Side | None) -> Measured:
    """Bytes of the model's files."""
    theirs = None if baseline is None else baseline.size
    found = None
    if theirs:
        times = candidate.size / theirs
        found = Interval(value=times, low=times, high=times)
    return Measured(name="size/bytes", n=1, candidate=candidate.size, baseline=theirs, ratio=found)
