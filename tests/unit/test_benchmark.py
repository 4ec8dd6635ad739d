"""Paired ratios by hand, and every side of every case on a tiny encoder."""

from __future__ import annotations

from typing import Any

import pytest

from moe import benchmark


def test_the_ratio_is_that_of_pairs() -> None:
    speeds = iter([30.0, 10.0, 20.0, 20.0, 40.0, 20.0])
    asked = []

    def measure(script: str, settings: dict[str, Any]) -> float:
        asked.append(settings)
        return next(speeds)

    report = benchmark.compare("script", "allocator", rounds=3, batch=(2, 5), measure=measure)
    assert report == {"ratio": {"median": 2.0, "min": 1.0, "max": 3.0}, "ours": 30.0,
                      "baseline": 20.0}
    assert [settings["keep"] for settings in asked] == [True, False] * 3
    assert all(settings["rows"] == 2 and settings["tokens"] == 5 for settings in asked)


@pytest.mark.parametrize("case", benchmark.CASES)
def test_both_sides_run(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setattr(benchmark, "SHAPE", {"dim": 8, "hidden_dim": 16, "n_heads": 2,
                                             "n_layers": 1, "vocab_size": 50})
    monkeypatch.setattr(benchmark, "STEP", ((2, 5), (3, 2)))
    monkeypatch.setattr(benchmark, "keep_freed_memory", lambda: None)
    for side in benchmark.CASES[case]:
        assert benchmark.run_side(rows=2, tokens=4, steps=1, **side) > 0
