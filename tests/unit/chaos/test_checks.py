"""The parts of the long checks that judge: they must see what is wrong."""

from __future__ import annotations

import json
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from moe.chaos.checks import CHECKS
from moe.chaos.corruption import DAMAGE
from moe.chaos.process import differences, leftovers
from moe.chaos.report import Report
from moe.chaos.soak import Watch


def watched(memory: list[float], descriptors: list[int] | None = None) -> Watch:
    """A look a second; memory in megabytes."""
    count = len(memory)
    return Watch(
        seconds=[float(second) for second in range(count)],
        memory=[int(value * 1e6) for value in memory],
        descriptors=descriptors or [10] * count,
        threads=[3] * count,
    )


def test_a_start_that_needs_memory_is_no_growth() -> None:
    watch = watched([float(min(second, 25)) * 10 for second in range(100)])
    assert watch.growth() == pytest.approx((0.0, 0.0), abs=1.0)
    assert watch.problems(1e6) == []


def test_a_leak_is_seen_through_noise() -> None:
    chance = random.Random(0)
    noise = [chance.gauss(0, 0.5) for _ in range(200)]
    steady = watched([100 + n for n in noise])
    leaking = watched([100 + 0.05 * second + n for second, n in enumerate(noise)])
    assert steady.problems(0.0) == []
    # 0.05 MB a second over the last 139 of 200 looks: 7 MB.
    assert leaking.growth()[0] == pytest.approx(7e6, rel=0.1)
    assert "memory grew by" in leaking.problems(1e6)[0] and leaking.problems(9e6) == []


def test_one_more_descriptor_in_the_second_half() -> None:
    counts = [5] * 10 + [9] * 40 + [9] * 49
    assert watched([1.0] * 100, [*counts, 9]).problems(1e6) == []
    assert watched([1.0] * 100, [*counts, 10]).problems(1e6) == ["descriptors grew to 10"]


def test_this_process_can_be_watched() -> None:
    watch = Watch()
    assert watch.look(os.getpid())
    assert watch.threads[0] >= threading.active_count() and watch.descriptors[0] >= 3
    assert watch.memory[0] > 1e6
    assert not watch.look(2**22 + 1)  # above every process id


def test_a_report_counts_cases_and_not_problems(tmp_path: Path) -> None:
    report = Report(name="x", numbers={"slowest": 2})
    report.case("a", [])
    report.case("b", ["torn", "late"])
    line = report.finish(tmp_path / "out" / "x.json")
    assert line.startswith("x: 1 of 2 passed in 0 s, slowest 2")
    found = json.loads((tmp_path / "out" / "x.json").read_text())
    assert (found["cases"], found["failed"]) == (2, 1)
    assert found["failures"] == ["b: torn", "b: late"]


def run_of(folder: Path, **content: Any) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    best = str(folder / "checkpoints" / "best.ckpt")
    torch.save({"path": best, "names": {best: 1.0}, **content},
               folder / "checkpoints" / "last.ckpt")
    return folder


@pytest.mark.parametrize(("change", "place"), [
    ({}, None), ({"w": torch.tensor([1.0, 2.0000002])}, ".w: tensors differ"),
    ({"w": torch.tensor([1, 2])}, ".w: tensors differ"),
    ({"n": {"a": [1, 3]}}, ".n.a[1]: 2 and 3"), ({"n": {"a": [1]}}, ".n.a: [1, 2] and [1]"),
    ({"m": 1}, ".m is in one only"), ({"x": 0.0}, ".x: nan and 0.0"),
])
def test_every_entry_is_compared_but_not_the_runs_own_folder(
    tmp_path: Path, change: dict[str, Any], place: str | None
) -> None:
    content = {"w": torch.tensor([1.0, 2.0]), "n": {"a": [1, 2]}, "x": float("nan")}
    one, other = run_of(tmp_path / "a", **content), run_of(tmp_path / "b", **content, **{})
    assert differences(one, other) == []
    third = run_of(tmp_path / "c", **{**content, **change})
    assert differences(one, third) == ([] if place is None else [place])


def test_what_is_left_over(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a")
    (run / "checkpoints" / "SHA256SUMS").touch()
    assert leftovers(run) == []
    (run / "checkpoints" / ".last.ckpt.7.tmp").touch()
    assert leftovers(run) == [".last.ckpt.7.tmp"]


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_changes_the_file(tmp_path: Path, kind: str) -> None:
    for seed in range(20):
        (tmp_path / "a").write_bytes(b"0123456789")
        DAMAGE[kind](tmp_path / "a", random.Random(seed))
        assert (tmp_path / "a").read_bytes() != b"0123456789"


def test_all_checks_are_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reliability.md").read_text()
    for name in CHECKS:
        assert f"| `{name}` |" in page
