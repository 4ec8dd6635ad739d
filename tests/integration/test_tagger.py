"""A tagger beside a classifier, from files to answers: train, checkpoint, eval, predict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe import MixtureOfExperts
from moe.onnx.export import export

Run = Callable[..., Any]
CONFIG = """
tasks:
  slots: {{type: tagger, train: slots.jsonl, validation: slots.conll, experts: 2}}
  mood: {{type: classifier, train: train.csv, validation: val.csv}}
model: {{encoder: {{name: {project}/encoder}}, gate: {{width: 16}}}}
data:
  {{root: {folder}, cache: {folder}/cache, batch_size: 32, max_length: 48, stride: 8,
    max_tokens: 512}}
optimizer: {{encoder_lr: 3.0e-3, expert_lr: 1.0e-2, gate_lr: 1.0e-2}}
trainer:
  max_epochs: -1
  max_steps: 40
  val_check_interval: 20
  check_val_every_n_epoch: null
  log_every_n_steps: 10
  default_root_dir: {folder}/runs
"""


@pytest.fixture(scope="module")
def folder(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Who built the mill is a name of three letters behind `by`; `in` goes before a year."""
    made = tmp_path_factory.mktemp("tagger")
    for name in ("train.csv", "val.csv"):
        (made / name).write_text((project / name).read_text())
    with (made / "slots.jsonl").open("w") as file:
        for number in range(48):
            file.write(json.dumps(_row(number)) + "\n")
    lines = [f"{word} x {tag}" for number in (60, 61, 62, 63)
             for word, tag in [*zip(*_row(number).values(), strict=True), ("", "")]]
    (made / "slots.conll").write_text("\n".join(line if line.strip("x ") else "" for line in lines))
    (made / "tagger.yaml").write_text(CONFIG.format(project=project, folder=made))
    return made


def _row(number: int) -> dict[str, list[str]]:
    letter = chr(97 + number % 26)
    name = 3 * letter if number < 60 else f"{letter}o{letter}"  # validation has its own
    who = [name, *(["good"] if number % 3 == 0 else [])]
    tokens = ["the", "mill", "was", "built", "by", *who, "in", f"17{number:02d}", "."]
    tags = ["O"] * 5 + ["B-who", "I-who"][: len(who)] + ["O", "B-year", "O"]
    return {"tokens": tokens, "tags": tags}


@pytest.fixture(scope="module")
def trained(folder: Path, run: Run) -> Path:
    done = run("train.py", "--config", folder / "tagger.yaml")
    assert "2 types (" in done.stdout and "0 rows without spans" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("slots ")]
    _, metric, score, trivial, _ = line.split()
    # Names and years of validation do not occur in training, so words alone find nothing.
    assert metric == "f1" and float(score) > 50 and float(trivial) == 0
    return folder / "runs" / "tagger" / "version_0" / "checkpoints" / "best.ckpt"


def test_eval_repeats_the_validation(trained: Path, folder: Path, run: Run) -> None:
    out = folder / "report.json"
    run("eval.py", "--ckpt", trained, "--json", out)
    metrics = json.loads(out.read_text())["tasks"]["slots"]
    assert metrics["n"] == 4
    assert {"precision", "recall", "f1", "word_accuracy", "routing_accuracy"} <= set(metrics)
    saved = MixtureOfExperts.from_pretrained(trained).bundle.metrics["tasks"]["slots"]
    assert metrics == pytest.approx(saved, abs=1e-6)
    tested = run("eval.py", "--ckpt", trained, "--test", "slots=slots.jsonl").stdout
    assert "slots" in tested and "precision" in tested


def test_answers_of_the_checkpoint_the_folder_and_the_command_line(
    trained: Path, tmp_path: Path, run: Run
) -> None:
    text = "the  mill was built by xyz in 1790."
    model = MixtureOfExperts.from_pretrained(trained, "cpu")
    answer = model.predict(text)
    assert answer["routing"][0]["task"] == "slots"
    spans = answer["answers"]["slots"]["spans"]
    assert spans and all(text[s["start"] : s["end"]] == s["text"] for s in spans)
    model.save_pretrained(tmp_path / "model")
    assert MixtureOfExperts.from_pretrained(tmp_path / "model", "cpu").predict(text) == answer
    rows, out = tmp_path / "rows.jsonl", tmp_path / "answers.jsonl"
    rows.write_text(json.dumps({"id": "1", "text": text}) + "\n" + json.dumps("a great day") + "\n")
    run("scripts/predict.py", "--ckpt", trained, "--input", rows, "--output", out)
    first, second = map(json.loads, out.read_text().splitlines())
    assert [s["text"] for s in first["answers"]["slots"]["spans"]] == [s["text"] for s in spans]
    assert set(second["answers"]) == {"mood"}


@pytest.mark.slow
def test_an_export_answers_the_same(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr("moe.onnx.parity.SIZES", ((1, 1), (3, 7)))
    monkeypatch.setattr("moe.onnx.parity.TEXTS", 40)
    parity = export(trained, tmp_path / "onnx").parity["fp32"]
    assert {"slots-0", "slots-1"} <= set(parity.difference)
    request = {"text": "the mill was built by xyz in 1790.", "tasks": ["slots", "mood"]}
    ours = MixtureOfExperts.from_pretrained(trained, "cpu").predict(request)["answers"]
    onnx = MixtureOfExperts.from_pretrained(tmp_path / "onnx", backend="onnx", threads=1)
    theirs = onnx.predict(request)["answers"]
    for mine, other in zip(ours["slots"]["spans"], theirs["slots"]["spans"], strict=True):
        assert mine.pop("score") == pytest.approx(other.pop("score"), abs=1e-4)
        assert mine == other


def test_a_mistake_in_a_row_is_named(folder: Path, run: Run) -> None:
    (folder / "bad.conll").write_text("the O\nmill B-what\n\n")
    arguments = ("--config", folder / "tagger.yaml", "--tasks.slots.validation", "bad.conll")
    said = run("train.py", *arguments, code=2).stderr
    assert "tag 'B-what' of 'the mill' is of none of the types ['who', 'year']" in said
