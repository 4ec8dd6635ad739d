"""The rehearsal to its end, with a tiny model: commands in this process, the server in its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe.bricks import corrections
from moe.bricks.fit import FitConfig
from moe.checkpoint import Bundle, load_bundle, save_checkpoint
from moe.config import OptimizerConfig
from moe.measure import build_test_tables, collect_table
from moe.profile import validation_profile
from moe.rehearsal import feedback, loop
from moe.rehearsal.shell import StepFailed, expect
from moe.release.registry import Registry
from moe.types import TaskSpec

pytestmark = pytest.mark.slow
FAST = FitConfig(epochs=8, batch_size=16, optimizer=OptimizerConfig(expert_lr=3e-3))
KNOWN = {"set_alarm": "film very good", "play_music": "who led monks", "oos": "7 8 9 abbot"}


@pytest.fixture
def tiny_tasks() -> tuple[TaskSpec, ...]:
    """One task, to which every request goes."""
    return (TaskSpec(name="intent", type="classifier", num_experts=1,
                     labels=("play_music", "set_alarm"), out_of_scope="oos"),)


def write_csv(path: Path, count: int, first: int) -> None:
    rows = [f"{words} {k},{label}" for label, words in KNOWN.items()
            for k in range(first, first + count)]
    path.write_text("\n".join(["text,label", *rows]))


@pytest.fixture
def trained(
    intent_expert: Callable[..., Bundle], intent_suite: Callable[..., None], tmp_path: Path
) -> Path:
    """`best.ckpt` with the profile of its validation, and `suite.yaml`."""
    import torch

    write_csv(tmp_path / "train.csv", 40, 0)
    write_csv(tmp_path / "val.csv", 100, 100)
    bundle = intent_expert(tmp_path, FAST)
    tables = build_test_tables(bundle, (), None)
    said = [collect_table(bundle, table, torch.device("cpu")) for table in tables]
    profile = validation_profile(tables, said, bundle.calibration, bundle.model.tasks)
    save_checkpoint(replace(bundle, profile=profile), tmp_path / "best.ckpt")
    intent_suite(tmp_path, "val.csv", perturbations=[], rows=60)
    return tmp_path / "best.ckpt"


def test_the_loop_runs_to_its_end(
    trained: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    typed: list[str] = []

    def here(*arguments: object, code: int = 0) -> str:
        typed.append(" ".join(map(str, arguments[:2])))
        done = run(*arguments, code=code)
        print(done.stdout)
        return str(done.stdout)

    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(loop, "run", here)
    monkeypatch.setattr(corrections, "CORRECT", FAST)
    loop.rehearse(tmp_path / "out", str(trained), str(tmp_path / "suite.yaml"))
    assert [name.split()[0].rpartition("/")[2] for name in typed] == [
        "gate.py", "gate.py", "monitor.py", "feedback.py", "bricks.py", "gate.py", "gate.py"]
    registry = Registry(tmp_path / "out" / "models" / "assistant")
    assert registry.versions() == ["v1", "v2"]
    current = registry.current()
    assert current is not None and current.name == "v1"
    events = [json.loads(line) for line in (tmp_path / "out/serve.log").read_text().splitlines()]
    assert [e["event"] for e in events].count("swapped") == 2


def test_the_study_of_feedback(trained: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    report = feedback.study(
        str(trained), tmp_path / "out", suite=str(tmp_path / "suite.yaml"), label="set_alarm",
        expert="intent-0", fit=FAST, say=lines.append)
    print("\n".join(lines))
    assert (report["honest"]["held"], report["honest"]["refused"]) == (200, 0)
    assert report["honest"]["passed"] and report["right"]["after"] >= 0.9
    hostile = report["hostile"]
    assert (hostile["held"], hostile["refused"], hostile["usable"]) == (50, 150, 0)
    assert not hostile["passed"] and "intent/in_scope_accuracy" in hostile["refused_by"]
    assert load_bundle(tmp_path / "out" / "honest.ckpt").history[-1]["data"]["corrections"] == 180
    assert not (tmp_path / "out" / "hostile.ckpt").exists()


def test_what_does_not_hold_stops_it() -> None:
    expect(True, "never")
    with pytest.raises(StepFailed, match="the swap"):
        expect(False, "the swap")
