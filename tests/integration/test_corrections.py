"""Feedback on a trained model: honest corrections mend an expert, hostile ones do not pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from moe.checkpoint import load_bundle
from moe.feedback import Quarantine, QuotaReached, hold, parse_correction, read_quarantine
from moe.predict import MixtureOfExperts
from moe.release.hashing import model_hash
from moe.release.registry import Registry

Run = Callable[..., Any]
NEW = [f"give song now {k}" for k in range(240)]  # asks for the time, from now on
SUITE: dict[str, Any] = {
    "tasks": {
        "mood": {"type": "classifier", "rows": "moods.csv"},
        "qa": {"type": "span", "rows": "qa.val.json"},
        "intent": {"type": "classifier", "rows": "intents.json", "out_of_scope": "oos"},
    },
    "perturbations": ["upper"],
    "draws": 300,
    "latency": None,
    "rules": {
        "*/ece*": {"max_rise": 20, "when_unsure": "pass"},
        "size/bytes": {"max_ratio": 1.2},
        "*": {"max_drop": 8, "when_unsure": "pass"},
    },
}


@pytest.fixture(scope="module")
def trained(project: Path, run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `best.ckpt`, one expert for intent, and `suite.yaml`."""
    folder = tmp_path_factory.mktemp("corrections")
    config = yaml.safe_load((project / "tiny.yaml").read_text())
    config["tasks"]["intent"]["experts"] = 1
    (folder / "one.yaml").write_text(yaml.safe_dump(config))
    run("train.py", "--config", folder / "one.yaml", "--trainer.default_root_dir", folder,
        "--trainer.max_steps", 60, "--trainer.val_check_interval", 60, "--checkpoint_every", 60)
    (folder / "one/version_0/checkpoints/best.ckpt").rename(folder / "best.ckpt")
    moods = [f"{text} {k},{label}" for k in range(6, 14) for text, label in (
        ("good film", "good"), ("i love it", "good"), ("awful food here", "bad"))]
    (project / "moods.csv").write_text("\n".join(["text,label", *moods]))
    intents = [[f"{text} {k}", label] for k in range(5, 17) for text, label in (
        ("what time is it", "time"), ("play a song", "music"), ("put on a song", "music"))]
    outside = [[f"bus food {k}", "oos"] for k in range(6, 30)]
    (project / "intents.json").write_text(json.dumps({"val": intents, "oos_val": outside}))
    suite = {**SUITE, "root": str(project)}
    (folder / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    return folder


def send(best: Path, folder: Path, corrections: Iterable[tuple[str, str, str]]) -> int:
    """What a server does with (source, text, label) of intent; how many it refuses."""
    model, refused = MixtureOfExperts.from_pretrained(best, "cpu"), 0
    quarantine = Quarantine(folder, per_source=50)
    spec = model.tasks[2]
    for source, text, label in corrections:
        correction, request = parse_correction(
            {"text": text, "task": "intent", "label": label}, model.tasks)
        try:
            quarantine.admit(source)
        except QuotaReached:
            refused += 1
            continue
        said = model.answer([request])[0]["answers"]["intent"]
        quarantine.keep(hold(correction, spec, source=source, model="", said=said))
    return refused


def right(ckpt: Path, texts: list[str], label: str) -> float:
    answers = MixtureOfExperts.from_pretrained(ckpt, "cpu").predict(texts)
    return sum(a["answers"].get("intent", {}).get("label") == label for a in answers) / len(texts)


def test_a_new_phrasing_is_right_after_200_corrections(
    trained: Path, run: Run, tmp_path: Path
) -> None:
    best, candidate = trained / "best.ckpt", tmp_path / "candidate.ckpt"
    assert right(best, NEW, "time") <= 0.1
    sources = [f"user-{k % 4}" for k in range(200)]
    corrections = [(source, text, "time") for source, text in zip(sources, NEW, strict=False)]
    assert send(best, tmp_path / "held", corrections) == 0
    trust = [word for k in range(4) for word in ("--trust", f"user-{k}")]
    reviewed = run("scripts/feedback.py", "--quarantine", tmp_path / "held",
                   "--out", tmp_path / "rows", *trust)
    assert "200 corrections may be learned from" in reviewed.stdout
    done = run("scripts/bricks.py", "update", "--ckpt", best, "--out", candidate, "--expert",
               "intent-0", "--feedback", tmp_path / "rows", "--suite", trained / "suite.yaml")
    print(done.stdout)
    assert "reach intent-0, which this update changes: " in done.stdout
    assert right(candidate, NEW[200:], "time") >= 0.9  # none of these was sent
    before, after = load_bundle(best), load_bundle(candidate)
    entry = after.history[-1]
    assert entry["about"]["feedback"] and entry["data"]["corrections"] == 180
    same = after.model.state_dict()
    moved = {name.split(".")[1] for name, tensor in before.model.state_dict().items()
             if not tensor.equal(same[name])}
    assert moved == {"intent-0"}
    judged = json.loads((tmp_path / "candidate-gate.json").read_text())
    assert judged["passed"] and judged["candidate"]["hash"] == model_hash(candidate)
    registry = Registry(tmp_path / "models" / "tiny")
    assert registry.promote(candidate, tmp_path / "candidate-gate.json") == "v1"


def hostile() -> list[tuple[str, str, str]]:
    """200 texts with the label of the other class, from one source."""
    rows = [("play a song", "time"), ("put on a song", "time"), ("what time is it", "music"),
            ("time please", "music")]
    return [("hostile", f"{text} {k}", label) for k in range(20, 70) for text, label in rows]


def test_hostile_corrections_do_not_pass(trained: Path, run: Run, tmp_path: Path) -> None:
    best, suite = trained / "best.ckpt", trained / "suite.yaml"
    assert send(best, tmp_path / "held", hostile()) == 150  # the quota
    reviewed = run("scripts/feedback.py", "--quarantine", tmp_path / "held",
                   "--out", tmp_path / "none")
    assert "left out 50: source hostile contradicts sure answers" in reviewed.stdout
    assert "0 corrections may be learned from" in reviewed.stdout
    # A source that passed both: 200 rows, as if sent over days by someone who is trusted.
    rows = tmp_path / "rows"
    rows.mkdir()
    lines = [json.dumps({"text": text, "label": label}) for _, text, label in hostile()]
    (rows / "intent.jsonl").write_text("\n".join(lines))
    candidate = tmp_path / "candidate.ckpt"
    done = run("scripts/bricks.py", "update", "--ckpt", best, "--out", candidate, "--expert",
               "intent-0", "--feedback", rows, "--suite", suite, code=1)
    print(done.stdout)
    assert "refused: intent/in_scope_accuracy: fell by" in done.stdout
    assert "refused, nothing written" in done.stdout
    assert not candidate.exists() and (tmp_path / "candidate-gate.json").exists()
    assert len(read_quarantine(tmp_path / "held")) == 50


@pytest.mark.parametrize(("arguments", "part"), [
    (["--feedback", "{held}"], "a quarantine: review it first with scripts/feedback.py"),
    (["--feedback", "{held}/none"], "no intent.jsonl there, expected the folder that"),
    (["--feedback", "{held}", "--label", "y"], "--label: belongs to --train"),
    (["--feedback", "{held}", "--train", "a.csv"], "give either --train SOURCE or --feedback DIR"),
    (["--train", "a.csv", "--own_rows", "5"], "--own_rows 5: belongs to --feedback"),
])  # fmt: skip
def test_mistakes_of_the_command_line(
    trained: Path, run: Run, tmp_path: Path, arguments: list[str], part: str
) -> None:
    (tmp_path / "feedback-20261122.jsonl").touch()
    done = run("scripts/bricks.py", "update", "--ckpt", trained / "best.ckpt",
               "--out", tmp_path / "new.ckpt", "--expert", "intent-0",
               "--suite", trained / "suite.yaml",
               *[word.format(held=tmp_path) for word in arguments], code=2)
    assert part in done.stderr
