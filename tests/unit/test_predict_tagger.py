"""Labelled spans of a text through `predict`: where they are, and what they do not depend on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moe.calibration import Calibration
from moe.checkpoint import Bundle
from moe.config import DataConfig, ExperimentConfig, TaskConfig
from moe.data.windows import TextTokenizer
from moe.model import Mixture
from moe.predict import MixtureOfExperts
from moe.types import TaskSpec

TASKS = (
    TaskSpec(name="mood", type="classifier", num_experts=1, labels=("bad", "good")),
    TaskSpec(name="slots", type="tagger", num_experts=2, labels=("O", "B-who", "I-who")),
    TaskSpec(name="qa", type="span", num_experts=1),
)
PASSAGE = "an abbot led the monks " * 8  # 40 tokens: several windows of 32


@pytest.fixture
def model(tiny_model: Callable[..., Mixture], word_tokenizer: TextTokenizer) -> MixtureOfExperts:
    """Untrained, with two experts for slots."""
    config = ExperimentConfig(
        tasks={t.name: TaskConfig(type=t.type, train="x", experts=t.num_experts) for t in TASKS},
        data=DataConfig(max_length=32, stride=4, max_tokens=512, max_padding=0.5),
    )
    mixture = tiny_model(tasks=TASKS, vocab_size=120, gate={"top_k": 2}).eval()
    bundle = Bundle(model=mixture, tokenizer=word_tokenizer, config=config, metrics={},
                    calibration=Calibration(temperature={"slots-0": 0.5}), precision="32-true")
    return MixtureOfExperts(bundle, "cpu")


def always(model: MixtureOfExperts, *words: str) -> None:
    """Lets both experts find exactly these words, by their embeddings."""
    table = model.model.encoder.embeddings.word_embeddings.weight
    ids = [int(model.bundle.tokenizer.encode([word])[0][0][0]) for word in words]
    with torch.no_grad():
        for layer in model.model.encoder.transformer.layer:  # states are embeddings, normed
            for linear in (layer.attention.out_lin, layer.ffn.lin2):
                linear.weight.zero_(), linear.bias.zero_()
        table[:, 0] = -9.0
        table[ids, 0] = 99.0
        for name in ("slots-0", "slots-1"):
            expert: Any = model.model.experts[name]
            for linear in (expert.trunk.attention.output, expert.trunk.feed_forward.outer):
                linear.weight.zero_(), linear.bias.zero_()
            expert.classifier.weight.zero_()
            expert.classifier.weight[1, 0] = 9.0
            expert.classifier.bias.copy_(torch.tensor([0.0, -9.0, -99.0]))


def slots(model: MixtureOfExperts, text: str, **request: Any) -> list[dict[str, Any]]:
    answer = model.predict({"text": text, "tasks": ["slots"], **request})
    return answer["answers"]["slots"]["spans"]


def test_spans_are_places_in_the_text_as_it_came(model: MixtureOfExperts) -> None:
    always(model, "abbot", "monks")
    text = "\n  the \U0001f33e Abbot,  led\tthe monks. "
    found = slots(model, text)
    assert [(s["label"], s["text"]) for s in found] == [("who", "Abbot"), ("who", "monks")]
    assert all(text[s["start"] : s["end"]] == s["text"] for s in found)
    assert all(0.5 < s["score"] < 1 + 1e-6 for s in found)
    assert slots(model, "the film was good") == []


def test_a_passage_is_read_and_not_labelled(model: MixtureOfExperts) -> None:
    always(model, "abbot")
    assert [s["start"] for s in slots(model, "an abbot", context=PASSAGE)] == [3]
    assert slots(model, "who led", context=PASSAGE) == []


def test_words_that_do_not_fit_have_no_label(model: MixtureOfExperts) -> None:
    always(model, "abbot")
    words = ["film"] * 40
    for place in (0, 29, 30, 39):  # 32 - 2 words fit
        text = " ".join([*words[:place], "abbot", *words[place + 1 :]])
        assert len(slots(model, text)) == (place < 30)


def test_an_answer_does_not_depend_on_its_neighbours(model: MixtureOfExperts) -> None:
    texts = ["the abbot led", "who", "an ok monks led by the very good abbot , who was bad",
             "film " * 20, {"text": "an abbot", "context": PASSAGE}]
    together = model.predict(texts, tasks=["slots", "mood"])
    for text, answer in zip(texts, together, strict=True):
        alone = model.predict(text, tasks=["slots", "mood"])
        pairs = zip(alone["answers"]["slots"]["spans"], answer["answers"]["slots"]["spans"],
                    strict=True)
        for mine, theirs in pairs:
            assert mine.pop("score") == pytest.approx(theirs.pop("score"), abs=1e-5)
            assert mine == theirs
    assert any(answer["answers"]["slots"]["spans"] for answer in together)


def test_explain_and_placement_beside_other_tasks(model: MixtureOfExperts) -> None:
    answer = model.predict({"text": "who led", "context": PASSAGE,
                            "tasks": ["slots", "qa", "mood"]}, explain=True)
    assert set(answer["answers"]) == {"slots", "qa", "mood"}
    assert set(answer["explanation"]["task_mass"]) == {"mood", "slots", "qa"}
    [routed] = [entry for entry in answer["routing"] if entry["task"] == "slots"]
    assert sum(expert["weight"] for expert in routed["experts"]) == pytest.approx(1.0)
    assert len(routed["experts"]) == 2
