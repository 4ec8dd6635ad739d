"""Pairing, ratios and the form of the report; nothing here is timed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from moe.benchmarks import BENCHMARKS
from moe.benchmarks.pairs import (
    Benchmark,
    Case,
    Options,
    run_benchmark,
    run_case,
    seconds_per_call,
)


def figures(log: list[str], name: str, values: list[float]) -> Callable[[], float]:
    """Says the values one after another, and writes down who was asked."""
    left = iter(values)

    def measure() -> float:
        log.append(name)
        return next(left)

    return measure


def case(log: list[str], ours: list[float], baseline: list[float]) -> Case:
    return Case(name="1x16", ours=figures(log, "ours", ours),
                baseline=figures(log, "baseline", baseline))


def test_the_median_ratio_is_that_of_pairs() -> None:
    log: list[str] = []
    # Pairs 2/1, 10/2, 12/4: ratios 2, 5 and 3. The ratio of the medians, 10/2, would be 5.
    result = run_case(case(log, [1, 2, 4], [2, 10, 12]), 3, "baseline / ours")
    assert result == {"ratio": {"median": 3, "min": 2, "max": 5}, "ours": 2, "baseline": 10}
    # Every other round begins with the baseline.
    assert log == ["ours", "baseline", "baseline", "ours", "ours", "baseline"]


def test_a_cost_is_divided_the_other_way() -> None:
    result = run_case(case([], [1, 2], [2, 8]), 2, "ours / baseline")
    assert result["ratio"] == {"median": 0.375, "min": 0.25, "max": 0.5}


def test_the_report_has_the_form_of_the_json() -> None:
    def cases(options: Options) -> Iterator[Case]:
        yield case([], [1.0] * options.rounds, [6.0] * options.rounds)
        yield Case(name="1x128", ours=lambda: 2.0, baseline=lambda: 8.0, facts={"backend": "x"})

    benchmark = Benchmark(about="a against b", cases=cases, unit="s", ratio="baseline / ours",
                          better="above 1 ours is faster")
    said: list[str] = []
    report = run_benchmark("int8", benchmark, Options(rounds=3), said.append)
    assert set(report) == {"name", "cases", "setup"}
    assert report["name"] == "int8"
    assert report["cases"]["1x16"] == {
        "ratio": {"median": 6, "min": 6, "max": 6}, "ours": 1, "baseline": 6}
    assert report["cases"]["1x128"]["ratio"]["median"] == 4
    setup = report["setup"]
    assert (setup["rounds"], setup["threads"], setup["unit"]) == (3, 1, "s")
    assert setup["better"] == "above 1 ours is faster"
    assert setup["facts"] == {"1x128": {"backend": "x"}}
    assert setup["processor"] and setup["versions"]["torch"]
    json.dumps(report)
    assert said[0] == "int8: a against b (baseline / ours; above 1 ours is faster)"
    assert said[2] == "1x128                   4.000x (4.000 to 4.000)  2 against 8 s  backend x"


def test_a_call_is_measured_at_least_once_and_warmed_up() -> None:
    calls: list[int] = []
    assert seconds_per_call(lambda: calls.append(1), 0.0) >= 0
    assert len(calls) == 2


def test_the_names_of_the_issue_are_there() -> None:
    names = {"two-tasks", "gate-overhead", "int8", "offline", "experts", "memory", "startup",
             "train", "gpu"}
    assert names <= set(BENCHMARKS)
    assert all(b.ratio in ("ours / baseline", "baseline / ours") for b in BENCHMARKS.values())


@pytest.mark.parametrize("name", ["memory", "gate-overhead", "experts"])
def test_a_cost_says_that_less_is_better(name: str) -> None:
    found: Any = BENCHMARKS[name]
    assert found.ratio == "ours / baseline"
    assert "below 1" in found.better or "costs" in found.better
