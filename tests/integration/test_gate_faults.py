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

from moe.rehearsal.faults import FAULTS
from moe.rehearsal.judging import UNDAMAGED, judge_faults

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
def refusals(rows: Path, run: Run) -> dict[str, list[str]]:
    """What refuses each damaged copy of a trained model, by the name of the damage."""
    run("train.py", "--config", rows / "tiny.yaml", "--trainer.default_root_dir", rows / "gate",
        "--trainer.max_steps", STEPS, "--trainer.val_check_interval", STEPS,
        "--checkpoint_every", STEPS, "--seed_everything", 0)
    best = rows / "gate" / "tiny" / "version_0" / "checkpoints" / "best.ckpt"
    return judge_faults(str(best), rows / "damaged", suite=str(rows / "suite.yaml"))


# Not "an export in 4 bits": with 32 dimensions it is within limits of 8 points.
@pytest.mark.parametrize("name", [*FAULTS, "an expert dropped from the ONNX graph"])
def test_a_damaged_model_is_refused(refusals: dict[str, list[str]], name: str) -> None:
    assert refusals[name]


def test_an_undamaged_copy_passes(refusals: dict[str, list[str]]) -> None:
    assert refusals[UNDAMAGED] == []
