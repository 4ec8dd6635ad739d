"""Corrections of a trained expert: honest ones mend it, hostile ones do not pass."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe.bricks.command import bricks_parser, run_bricks
from moe.bricks.corrections import reach_lines, update_from_feedback, where_they_go
from moe.bricks.fit import FitConfig
from moe.checkpoint import Bundle, load_bundle, save_checkpoint
from moe.config import OptimizerConfig
from moe.feedback import read_quarantine
from moe.predict import MixtureOfExperts
from moe.rehearsal import feedback
from moe.release.hashing import model_hash
from moe.release.registry import Registry
from moe.review import review, write_rows
from moe.types import InputError, TaskSpec

from .conftest import texts

FAST = FitConfig(epochs=8, batch_size=16, optimizer=OptimizerConfig(expert_lr=3e-3))
NEW = [f"bad film {k}" for k in range(240)]  # what means "ask" from now on
KNOWN = {"pay": "film very good", "ask": "who led monks", "oos": "7 8 9"}


@pytest.fixture
def tiny_tasks() -> tuple[TaskSpec, ...]:
    """One task, to which every request goes."""
    return (TaskSpec(name="intent", type="classifier", num_experts=1, labels=("pay", "ask"),
                     out_of_scope="oos"),)


def write_csv(path: Path, count: int, seed: int) -> Path:
    rows = [f"{text} {k},{label}" for label, words in KNOWN.items()
            for k, text in enumerate(texts(words, count, seed))]
    path.write_text("\n".join(["text,label", *rows]))
    return path


@pytest.fixture
def judged(tmp_path: Path, intent_suite: Callable[..., None]) -> None:
    """`suite.yaml`."""
    write_csv(tmp_path / "judged.csv", 30, 2)
    intent_suite(tmp_path, "judged.csv", perturbations=["upper"])


@pytest.fixture
def trained(intent_expert: Callable[..., Bundle], judged: None, tmp_path: Path) -> Path:
    """`best.ckpt`, whose expert knows `KNOWN`, and `suite.yaml`."""
    write_csv(tmp_path / "train.csv", 40, 0)
    write_csv(tmp_path / "val.csv", 20, 1)
    save_checkpoint(intent_expert(tmp_path, FAST), tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt"


def send(best: Path, folder: Path, corrections: Iterable[tuple[str, str, str]]) -> int:
    """What a server does with (source, text, label); how many it refuses."""
    model = MixtureOfExperts.from_pretrained(best, "cpu")
    return feedback.send(model, folder, "intent", corrections)["refused"]


def right(ckpt: Path, asked: list[str], label: str) -> float:
    answers = MixtureOfExperts.from_pretrained(ckpt, "cpu").predict(asked)
    return sum(a["answers"]["intent"]["label"] == label for a in answers) / len(asked)


def command(best: Path, out: Path, *words: object) -> int:
    suite = best.parent / "suite.yaml"
    arguments = ("update", "--ckpt", best, "--out", out, "--expert", "intent-0", "--suite", suite,
                 *words)
    return run_bricks(bricks_parser(None).parse_args([str(word) for word in arguments]))


def test_a_new_phrasing_is_right_after_200_corrections(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert right(trained, NEW, "ask") <= 0.1
    users = [f"user-{k % 4}" for k in range(200)]
    sent = [(user, text, "ask") for user, text in zip(users, NEW, strict=False)]
    assert send(trained, tmp_path / "held", sent) == 0
    found = review(read_quarantine(tmp_path / "held"), trusted=set(users))
    assert len(found.usable) == 200
    write_rows(found.usable, tmp_path / "rows")
    out = tmp_path / "new.ckpt"
    assert command(trained, out, "--feedback", tmp_path / "rows", "--lr", 3e-3) == 0
    printed = capsys.readouterr().out
    assert "180 to train on beside 120 of its own rows, 20 held out; 0 left out" in printed
    assert "reach intent-0, which this update changes: 200 of 200" in printed
    assert "passed: " in printed and f"wrote {out}" in printed
    assert right(out, NEW[200:], "ask") >= 0.9  # none of these was sent
    before, after = load_bundle(trained), load_bundle(out)
    new = after.model.state_dict()
    moved = [name for name, old in before.model.state_dict().items() if not old.equal(new[name])]
    assert moved and all(name.startswith("experts.intent-0.") for name in moved)
    assert after.history[-1]["data"]["corrections"] == 180
    report = tmp_path / "new-gate.json"
    assert json.loads(report.read_text())["candidate"]["hash"] == model_hash(out)
    assert Registry(tmp_path / "models" / "tiny").promote(out, report) == "v1"


def hostile() -> list[tuple[str, str, str]]:
    """200 texts with the label of the other class, from one source."""
    flipped = {"pay": "ask", "ask": "pay"}
    return [("hostile", f"{text} {k}", flipped[label]) for label in flipped
            for k, text in enumerate(texts(KNOWN[label], 100, 9), start=100)]


def test_hostile_corrections_do_not_pass(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send(trained, tmp_path / "held", hostile()) == 150  # the quota
    found = review(read_quarantine(tmp_path / "held"))
    assert found.usable == []
    assert found.left_out == {"source hostile contradicts sure answers": 50}
    # As if they had passed both: sent over days, by someone who is trusted.
    (tmp_path / "rows").mkdir()
    lines = [json.dumps({"text": text, "label": label}) for _, text, label in hostile()]
    (tmp_path / "rows" / "intent.jsonl").write_text("\n".join(lines))
    out = tmp_path / "new.ckpt"
    assert command(trained, out, "--feedback", tmp_path / "rows", "--lr", 3e-3) == 1
    printed = capsys.readouterr().out
    assert "refused: intent/in_scope_accuracy: fell by" in printed
    assert "refused, nothing written" in printed
    assert (tmp_path / "new-gate.json").exists() and not out.exists()
    assert not list(tmp_path.glob(".new*"))


def test_what_contradicts_the_training_data_is_left_out(trained: Path, tmp_path: Path) -> None:
    own = (tmp_path / "train.csv").read_text().splitlines()[1].partition(",")[0].upper()
    known = (tmp_path / "val.csv").read_text().splitlines()[1].partition(",")[0]
    rows = [*NEW[:20], own, known, known, NEW[0]]  # one of NEW is sent twice
    lines = [json.dumps({"text": text, "label": "ask"}) for text in rows]
    (tmp_path / "intent.jsonl").write_text("\n".join(lines))
    made = update_from_feedback(load_bundle(trained), expert="intent-0", folder=tmp_path,
                                fit=replace(FAST, epochs=1), own_rows=30)
    assert made.notes[0].endswith(
        "18 to train on beside 30 of its own rows, 2 held out; 4 left out, which repeat or "
        "contradict its own rows")
    (tmp_path / "intent.jsonl").write_text("\n".join(lines[:9]))
    with pytest.raises(InputError, match=r"9 of 9 corrections are left beside.*at least 10"):
        update_from_feedback(load_bundle(trained), expert="intent-0", folder=tmp_path)
    (tmp_path / "train.csv").unlink()
    with pytest.raises(InputError, match=r"of intent cannot be read.*--old_root"):
        update_from_feedback(load_bundle(trained), expert="intent-0", folder=tmp_path)


def test_the_profile_is_that_of_the_new_expert(trained: Path, tmp_path: Path) -> None:
    from moe.monitor.commands import fit, read_profile

    fit(str(trained), str(tmp_path / "p.npz"))
    bundle = replace(load_bundle(trained), profile=read_profile(str(tmp_path / "p.npz")))
    lines = [json.dumps({"text": text, "label": "pay"}) for text in NEW[:30]]
    (tmp_path / "intent.jsonl").write_text("\n".join(lines))
    made = update_from_feedback(bundle, expert="intent-0", folder=tmp_path, fit=FAST).bundle
    save_checkpoint(made, tmp_path / "new.ckpt")
    fit(str(tmp_path / "new.ckpt"), str(tmp_path / "new.npz"))
    expected = read_profile(str(tmp_path / "new.npz")).confidence_N
    assert made.profile is not None and bundle.profile is not None
    assert made.profile.confidence_N.tolist() == pytest.approx(expected.tolist(), nan_ok=True)
    assert made.profile.confidence_N.tolist() != bundle.profile.confidence_N.tolist()


def answer(task: str, expert: str, abstained: bool = False) -> dict[str, Any]:
    return {"abstained": abstained,
            "routing": [{"task": task, "experts": [{"name": expert, "weight": 1.0}]}]}


def test_it_says_what_an_update_cannot_mend() -> None:
    spec = TaskSpec(name="intent", type="classifier", num_experts=2, labels=("pay",))
    answers = [answer("intent", "intent-1")] * 5 + [answer("intent", "intent-0")] * 3 + [
        answer("mood", "mood-0"), answer("mood", "mood-1"), answer("intent", "intent-1", True)]
    found = where_they_go(answers, spec, "intent-1")
    assert found.mine == 5 and found.others == {"intent-0": 3}
    assert found.elsewhere == Counter({"mood": 2, "no task": 1})
    lines = reach_lines(found, spec, "intent-1")
    assert lines[0] == "reach intent-1, which this update changes: 5 of 11"
    assert lines[1] == "reach intent-0, whose answers stay: 3; update it as well"
    assert lines[2].startswith("routed elsewhere: 3 (mood 2, no task 1); the gate chooses")


@pytest.mark.parametrize(("arguments", "part"), [
    (["--feedback", "{held}"], "a quarantine: review it first with scripts/feedback.py"),
    (["--feedback", "{held}/none"], "no intent.jsonl there, expected the folder that"),
    (["--feedback", "{held}", "--label", "y"], "--label: belongs to --train"),
    (["--feedback", "{held}", "--data.root", "x"], "--data.root x: belongs to --train"),
    (["--feedback", "{held}", "--train", "a.csv"], "give either --train SOURCE or --feedback DIR"),
    (["--train", "a.csv", "--own_rows", "5"], "--own_rows 5: belongs to --feedback"),
])  # fmt: skip
def test_mistakes_of_the_command_line(
    word_bundle: Callable[..., Bundle], judged: None, tmp_path: Path, arguments: list[str],
    part: str,
) -> None:
    save_checkpoint(word_bundle(), tmp_path / "best.ckpt")
    (tmp_path / "feedback-20261122.jsonl").touch()
    words = [word.format(held=tmp_path) for word in arguments]
    with pytest.raises(InputError) as error:
        command(tmp_path / "best.ckpt", tmp_path / "new.ckpt", *words)
    assert part in str(error.value)


def test_a_mistake_in_the_suite_costs_no_training(
    word_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    save_checkpoint(word_bundle(), tmp_path / "best.ckpt")
    with pytest.raises(InputError, match=r"--suite .*suite\.yaml: no such file"):
        command(tmp_path / "best.ckpt", tmp_path / "new.ckpt", "--feedback", tmp_path)


def test_feedback_needs_a_suite(tmp_path: Path) -> None:
    words = ["update", "--ckpt", "any.ckpt", "--out", tmp_path / "new.ckpt", "--expert", "intent-0",
             "--feedback", tmp_path]
    with pytest.raises(InputError, match="learned from feedback is judged: give --suite"):
        run_bricks(bricks_parser(None).parse_args([str(word) for word in words]))
