"""`transformers.pipeline` around the predictor: its input forms, its output forms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import pipeline

from moe.checkpoint import Bundle, save_bundle
from moe.pipeline import MixtureOfExpertsPipeline, pipeline_entries
from moe.predict import MixtureOfExperts
from moe.types import InputError, TaskSpec

NAME = "mixture-of-experts"
QUESTION = {"question": "who led the monks", "context": "an abbot led the monks"}
MORE = {"task", "expert", "abstained"}


@pytest.fixture
def predictor(word_bundle: Callable[..., Bundle]) -> MixtureOfExperts:
    return MixtureOfExperts(word_bundle(), "cpu")


@pytest.fixture
def pipe(predictor: MixtureOfExperts) -> Any:
    return pipeline(NAME, model=predictor)


# --- loading ----------------------------------------------------------------------------------


def test_a_folder_is_loaded_by_name(word_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle = word_bundle()
    save_bundle(bundle, tmp_path)
    pipe = pipeline(NAME, model=str(tmp_path), device="cpu")
    assert isinstance(pipe, MixtureOfExpertsPipeline) and pipe.task == NAME
    assert pipe("good") == pipeline(NAME, model=MixtureOfExperts(bundle, "cpu"))("good")
    assert pipe.device == torch.device("cpu") and "MixtureOfExperts" in repr(pipe)
    pipe.save_pretrained(tmp_path / "again")
    assert pipeline(NAME, model=tmp_path / "again")("good") == pipe("good")


def test_the_class_itself_loads_a_path(
    word_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    save_bundle(word_bundle(), tmp_path)
    assert MixtureOfExpertsPipeline(tmp_path, device="cpu")("good")[0]["task"]


def test_unknown_options_are_refused_by_name(pipe: Any) -> None:
    with pytest.raises(InputError, match="no option 'top_k', known: tasks"):
        pipe("good", top_k=3)
    with pytest.raises(InputError, match="either question or text"):
        pipe({"question": "a", "text": "b"})


# --- forms ------------------------------------------------------------------------------------


def test_a_text_is_answered_like_text_classification(pipe: Any) -> None:
    said = pipe("the film was good")
    assert isinstance(said, list) and len(said) == 1
    assert set(said[0]) == {"label", "score"} | MORE
    assert isinstance(said[0]["label"], str) and 0 <= said[0]["score"] <= 1
    assert said[0]["expert"].startswith(said[0]["task"]) and said[0]["abstained"] is False
    many = pipe(["the film was good", "bad"])
    assert [set(entry) for entry in many] == [{"label", "score"} | MORE] * 2
    assert many[0]["label"] == said[0]["label"]


def test_a_question_is_answered_like_the_removed_pipeline(pipe: Any) -> None:
    said = pipe(QUESTION)  # which asks for a span, whatever the gate thinks of it
    assert set(said) == {"answer", "score", "start", "end"} | MORE
    assert said["task"] == "qa" and said["expert"] == "qa-0"
    if said["answer"]:
        assert QUESTION["context"][said["start"] : said["end"]] == said["answer"]
    assert pipe(**QUESTION) == said and pipe([QUESTION]) == [said]
    assert pipe(QUESTION, tasks=["intent"])["task"] == "intent"
    assert pipe({**QUESTION, "tasks": ["sentiment"]})["task"] == "sentiment"


def test_several_tasks_give_several_entries(pipe: Any) -> None:
    said = pipe("good film", tasks=["sentiment", "intent"])
    assert sorted(entry["task"] for entry in said) == ["intent", "sentiment"]
    both = pipe(["good film", {"text": "bad", "tasks": ["intent"]}], tasks=["sentiment", "intent"])
    assert [entry["expert"] for entry in both[0]] == [entry["expert"] for entry in said]
    assert both[1]["task"] == "intent"


def test_tasks_may_be_chosen_when_it_is_made(predictor: MixtureOfExperts) -> None:
    pipe = pipeline(NAME, model=predictor, tasks=["intent"])
    assert pipe("good")[0]["task"] == "intent"
    assert pipe("good", tasks=["sentiment"])[0]["task"] == "sentiment"


def test_streams_and_data_sets(pipe: Any) -> None:
    texts = ["good", "bad film", "the monks"]
    expected = pipe(texts)
    stream = pipe(text for text in texts)
    assert not isinstance(stream, list) and list(stream) == expected
    assert pipe(Dataset.from_dict({"text": texts})) == expected
    assert pipe(texts, batch_size=2) == expected  # batches follow the token budget


# --- entries by hand --------------------------------------------------------------------------

TASKS = (
    TaskSpec(name="qa", type="span", num_experts=2),
    TaskSpec(name="intent", type="classifier", num_experts=1, labels=("pay",), out_of_scope="oos"),
    TaskSpec(name="slots", type="tagger", num_experts=1, labels=("O", "B-city", "I-city")),
)


def said(task: str, answer: dict[str, Any], **weights: float) -> dict[str, Any]:
    experts = [{"name": name.replace("_", "-"), "weight": w} for name, w in weights.items()]
    return {
        "abstained": False,
        "routing": [{"task": task, "probability": 0.9, "experts": experts}],
        "answers": {task: answer},
    }


def test_the_expert_with_the_largest_weight_is_named() -> None:
    answer = {"text": "abbot", "start": 3, "end": 8, "score": 0.5, "no_answer": False}
    entry, = pipeline_entries(said("qa", answer, qa_0=0.25, qa_1=0.75), TASKS)
    assert entry == {"answer": "abbot", "score": 0.5, "start": 3, "end": 8, "task": "qa",
                     "expert": "qa-1", "abstained": False}


def test_no_answer_is_empty_at_zero() -> None:
    answer = {"text": "", "start": None, "end": None, "score": 0.7, "no_answer": True}
    entry, = pipeline_entries(said("qa", answer, qa_0=1.0), TASKS)
    assert (entry["answer"], entry["start"], entry["end"], entry["score"]) == ("", 0, 0, 0.7)


def test_out_of_scope_has_the_label_of_the_training_data() -> None:
    answer = {"label": None, "score": 0.8, "out_of_scope": True, "runner_up": "pay"}
    entry, = pipeline_entries(said("intent", answer, intent_0=1.0), TASKS)
    assert (entry["label"], entry["score"], entry["abstained"]) == ("oos", 0.8, False)


def test_a_tagger_gives_an_entry_per_span() -> None:
    span = {"label": "city", "start": 3, "end": 7, "text": "Oslo", "score": 0.9}
    answer = {"spans": [span, {**span, "start": 12, "end": 16}]}
    first, second = pipeline_entries(said("slots", answer, slots_0=1.0), TASKS)
    assert first == {"entity_group": "city", "word": "Oslo", "start": 3, "end": 7, "score": 0.9,
                     "task": "slots", "expert": "slots-0", "abstained": False}
    assert second["start"] == 12
    assert pipeline_entries(said("slots", {"spans": []}, slots_0=1.0), TASKS) == []


def test_abstaining_has_the_keys_of_both_forms() -> None:
    nothing = {"abstained": True, "answers": {}, "routing": [], "reason": "fits no task"}
    entry, = pipeline_entries(nothing, TASKS)
    assert entry["abstained"] and entry["expert"] is None and entry["task"] is None
    assert (entry["label"], entry["answer"], entry["score"]) == (None, "", 0.0)
