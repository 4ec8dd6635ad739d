"""A grown model as an ONNX graph, and one task of it in Hugging Face's own class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from moe.bricks.extract import extract
from moe.bricks.grow import grow
from moe.bricks.remove import remove
from moe.checkpoint import Bundle, save_checkpoint
from moe.config import TaskConfig
from moe.data.collate import collate
from moe.data.windows import make_windows
from moe.encoder import encode, encode_layers
from moe.predict import MixtureOfExperts
from moe.types import InputError

from .conftest import FEW, texts

Old = Callable[..., Bundle]


def grown(bundle: Bundle, rows: Path) -> Bundle:
    task = TaskConfig(type="classifier", train=str(rows))
    return grow(bundle, task="topic", config=task, fit=FEW).bundle


def with_tagger(bundle: Bundle, rows: Path) -> Bundle:
    task = TaskConfig(type="tagger", train=str(rows))
    return grow(bundle, task="slots", config=task, fit=replace(FEW, epochs=8)).bundle


@pytest.mark.slow
def test_a_grown_model_answers_the_same_from_onnx(
    old_model: Old, new_rows: Path, tagged_rows: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript")
    from moe.onnx.export import export
    from moe.onnx.predictor import OnnxMixtureOfExperts

    few = remove(remove(old_model(), task="intent").bundle, expert="sentiment-0").bundle
    made = with_tagger(grown(few, new_rows), tagged_rows)  # each expert takes seconds
    save_checkpoint(made, tmp_path / "grown.ckpt")
    export(tmp_path / "grown.ckpt", tmp_path / "onnx")  # refuses to write what differs
    asked = [*texts("cat purr paw", 3), *texts("good film bad", 3), *texts("zz 7 8 9", 3),
             {"text": "who led", "context": "an abbot led the monks " * 8}]
    ours = MixtureOfExperts(made, "cpu").predict(asked)
    theirs = OnnxMixtureOfExperts.from_pretrained(tmp_path / "onnx").predict(asked)
    assert {a["routing"][0]["task"] for a in ours} > {"topic"}
    named = {"text": "the cat and the dog", "tasks": ["slots"]}
    both = [model.predict(named)["answers"]["slots"] for model in (
        MixtureOfExperts(made, "cpu"), OnnxMixtureOfExperts.from_pretrained(tmp_path / "onnx"))]
    spans = [[(s["label"], s["start"], s["end"]) for s in said["spans"]] for said in both]
    assert spans[0] == spans[1] != []
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["abstained"] == other["abstained"]
        assert [r["task"] for r in mine["routing"]] == [r["task"] for r in other["routing"]]
        for a, b in zip(mine["routing"], other["routing"], strict=True):
            assert a["probability"] == pytest.approx(b["probability"], abs=1e-4)


def mixture_logits(bundle: Bundle, expert: str, text: str, context: str | None) -> torch.Tensor:
    ids = bundle.tokenizer.encode([text, context or ""])
    window = make_windows(ids[0][0], ids[1][0] if context else None, max_length=32, stride=4)[0]
    batch = collate([window], [0], bundle.tokenizer)
    hidden = encode(bundle.model.encoder, batch.input_ids, batch.attention_mask)
    said: torch.Tensor = bundle.model.experts[expert](
        hidden, batch.attention_mask, batch.context_mask)
    return said


@pytest.mark.parametrize(("task", "expert"), [("topic", None), ("intent", "intent-3")])
@torch.no_grad()
def test_a_classifier_in_plain_transformers(
    old_model: Old, new_rows: Path, tmp_path: Path, task: str, expert: str | None
) -> None:
    made = grown(old_model(), new_rows)
    done = extract(made, task=task, out=tmp_path / "hf", expert=expert)
    assert done.layers == 3 and done.largest < 1e-5
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "the abbot led very good monks"
    said = model(**tokenizer(text, return_tensors="pt")).logits
    assert_close(said, mixture_logits(made, done.expert, text, None), atol=1e-5, rtol=1e-5)
    spec = next(t for t in made.model.tasks if t.name == task)
    names = [*spec.labels, *([spec.out_of_scope] if spec.out_of_scope else [])]
    assert list(model.config.id2label.values()) == names


@torch.no_grad()
def test_a_span_task_in_plain_transformers(old_model: Old, tmp_path: Path) -> None:
    bundle = old_model()
    extract(bundle, task="qa", out=tmp_path / "hf")
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    asked, passage = "who led", "an abbot led the monks"
    said = model(**tokenizer(asked, passage, return_tensors="pt"))
    theirs = torch.stack([said.start_logits, said.end_logits], -1)
    ours = mixture_logits(bundle, "qa-0", asked, passage)
    finite = torch.isfinite(ours)
    assert finite[0, :, 0].tolist() == [True, False, False, False, *[True] * 5, False]
    assert_close(theirs[finite], ours[finite], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_grown_tagger_reads_an_early_layer(
    old_model: Old, tagged_rows: Path, tmp_path: Path
) -> None:
    made = with_tagger(old_model(), tagged_rows)
    done = extract(made, task="slots", out=tmp_path / "hf")
    assert done.layers == 2  # one of the encoder's two, and the trunk
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    theirs = model(**tokenizer("the cat and the dog", return_tensors="pt")).logits
    ids = made.tokenizer.encode(["the cat and the dog"])[0][0]
    batch = collate([make_windows(ids, None, max_length=32, stride=4)[0]], [0], made.tokenizer)
    blocks = [(batch.input_ids, batch.attention_mask)]
    states = encode_layers(made.model.encoder, blocks, [1, 2])[0]
    masks = batch.attention_mask, batch.context_mask
    expert = made.model.experts["slots-0"]
    assert_close(theirs, expert(states[1], *masks), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(theirs, expert(states[2], *masks), atol=1e-2)
    slots = [task.name == "slots" for task in made.model.tasks]
    output = made.model(batch, tasks_BT=torch.tensor([slots]))
    assert_close(output.experts[0].logits, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("shape", "message"), [
    ({"trunk": "ffn"}, "its trunk is 'ffn', and no class of Hugging Face"),
    ({"pooling": "mean"}, "its head reads the mean of the token states"),
])
def test_what_extract_refuses(
    old_model: Old, tiny_model: Any, tmp_path: Path, shape: dict[str, str], message: str
) -> None:
    bundle = old_model()
    with pytest.raises(InputError, match=r"--expert None: the task 'intent' has \['intent-0'"):
        extract(bundle, task="intent", out=tmp_path / "hf")
    other = replace(bundle, model=tiny_model(expert=shape, vocab_size=120).eval())
    with pytest.raises(InputError, match=message):
        extract(other, task="intent", out=tmp_path / "hf", expert="intent-0")
    assert not (tmp_path / "hf").exists()
