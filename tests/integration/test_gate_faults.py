"""Damaged copies of a trained model are refused, and an undamaged one passes.

The limits of `SUITE` were not changed after the first verdict on any of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from moe.rehearsal.faults import FAULTS, damaged
from moe.release.check import check

pytestmark = pytest.mark.slow
Run = Callable[..., Any]
STEPS = 150
NAMES = [chr(97 + k) * 3 for k in range(26)]
SUITE: dict[str, Any] = {
    "tasks": {
        "mood": {"type": "classifier", "rows": "judged.csv"},
        "qa": {"type": "span", "rows": "judged.qa.json"},
        "intent": {"type": "classifier", "rows": "judged.intent.json", "out_of_scope": "oos"},
    },
    "perturbations": ["upper", "no_punctuation"],
    "draws": 300,
    "latency": None,
    "rules": {
        "*/ece*": {"max_rise": 15, "when_unsure": "pass"},
        "*/abstain_rate*": {"max_rise": 3, "when_unsure": "pass"},
        "size/bytes": {"max_ratio": 1.2},
        "*": {"max_drop": 8, "when_unsure": "pass"},
    },
}


@pytest.fixture(scope="session")
def rows(project: Path) -> Path:
    """Rows to judge on, in the folder of `project`."""
    lines = ["text,label"]
    for k in range(6, 14):
        lines += [f"{t} {k},{label}" for label, t in (
            ("good", "good film"), ("good", "i love it"), ("bad", "awful food here"),
            ("bad", "i hate it"), ("good", "a great day"), ("bad", "an awful day"))]
    (project / "judged.csv").write_text("\n".join(lines))
    intents = [[f"{t} {k}", label] for k in range(5, 13) for label, t in (
        ("time", "what time is it"), ("music", "play a song"), ("time", "give the time now"),
        ("music", "put on a song"))]
    outside = [[f"bus food {k}", "oos"] for k in range(6, 30)]
    (project / "judged.intent.json").write_text(json.dumps({"val": intents, "oos_val": outside}))
    paragraphs = []
    for k in range(40, 76):
        name = NAMES[k % 26]
        context = f"the mill was built in 17{k:02d} by {name}, it was good."
        answer = {"text": name, "answer_start": context.index(f"by {name}") + 3}
        paragraphs.append({"context": context, "qas": [
            {"id": str(k), "question": "who built the mill?", "answers": [answer]}]})
    document = {"version": "v1.1", "data": [{"title": "m", "paragraphs": paragraphs}]}
    (project / "judged.qa.json").write_text(json.dumps(document))
    suite = {**SUITE, "root": str(project)}
    (project / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    return project


@pytest.fixture(scope="session")
def train(rows: Path, run: Run) -> Callable[[int], Path]:
    """The best checkpoint of a training with this seed."""

    def build(seed: int) -> Path:
        root = rows / f"gate{seed}"
        run("train.py", "--config", rows / "tiny.yaml", "--trainer.default_root_dir", root,
            "--trainer.max_steps", STEPS, "--trainer.val_check_interval", STEPS,
            "--checkpoint_every", STEPS, "--seed_everything", seed)
        return root / "tiny" / "version_0" / "checkpoints" / "best.ckpt"

    return build


@pytest.fixture(scope="session")
def baseline(train: Callable[[int], Path]) -> Path:
    return train(0)


@pytest.mark.parametrize("name", [*FAULTS])
def test_a_damaged_model_is_refused(
    baseline: Path, rows: Path, tmp_path: Path, name: str
) -> None:
    candidate = damaged(baseline, FAULTS[name], tmp_path / "candidate")
    report = check(str(candidate), str(baseline), rows / "suite.yaml")
    print(name, [verdict.name for verdict in report.refused])
    assert not report.passed


def test_an_undamaged_copy_passes(baseline: Path, rows: Path, tmp_path: Path) -> None:
    candidate = damaged(baseline, None, tmp_path / "candidate")
    report = check(str(candidate), str(baseline), rows / "suite.yaml")
    assert report.passed, report.refused
