"""Answers do not depend on the form of the question, nor on their neighbours."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from moe.abstain import STRANGERS, Reference, normalise
from moe.calibration import Calibration
from moe.checkpoint import Bundle
from moe.predict import MixtureOfExperts
from moe.requests import Request
from moe.streams import WINDOW
from moe.types import InputError

CONTEXT = "an abbot led the monks " * 6  # several windows of 32 tokens
MIXED: list[Any] = [
    "the film was very good",
    {"text": "who led the monks", "context": "an abbot led the monks", "id": "7"},
    {"text": "bad", "tasks": ["sentiment", "intent"]},
    {"text": "who was good", "context": CONTEXT},
    "a",
    {"text": "who led", "context": CONTEXT, "tasks": ["qa"]},
    {"text": "very " * 40},
    {"text": "good film", "tasks": ["intent"]},
]


@pytest.fixture
def model(word_bundle: Callable[..., Bundle]) -> MixtureOfExperts:
    return MixtureOfExperts(word_bundle(), "cpu")


def assert_close(ours: Any, theirs: Any) -> None:
    """Equal, numbers within 1e-5."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_close(ours[key], theirs[key])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one, other)
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, abs=1e-5)
    else:
        assert ours == theirs


# --- forms ------------------------------------------------------------------------------------


def test_every_form_gives_the_same(model: MixtureOfExperts) -> None:
    said = model.predict(MIXED)
    assert len(said) == len(MIXED) and said[1]["id"] == "7"
    assert list(model.predict(iter(MIXED))) == said  # the same window, so bit for bit
    assert_close(model.predict(MIXED[0]), said[0])
    assert_close(model.predict(text=MIXED[0]), said[0])
    assert_close(model.predict(MIXED[1]), said[1])
    assert_close(model.predict(text="who was good", context=CONTEXT), said[3])
    assert model.predict([]) == []


def test_a_data_set_is_answered_like_its_rows(model: MixtureOfExperts) -> None:
    rows = [{"text": r} if isinstance(r, str) else r for r in MIXED]
    columns = {k: [row.get(k) for row in rows] for k in ("text", "context", "tasks", "id")}
    dataset = Dataset.from_dict({**columns, "label": list(range(len(rows)))})
    assert model.predict(dataset) == model.predict(MIXED)


def test_named_tasks_are_all_answered_and_no_other(model: MixtureOfExperts) -> None:
    said = model.predict([MIXED[0], MIXED[7]], tasks=["sentiment", "intent"])
    assert list(said[0]["answers"]) == ["sentiment", "intent"]
    assert list(said[1]["answers"]) == ["intent"]  # its own names come first
    with pytest.raises(InputError, match="no task 'weather'; the model has"):
        model.predict("good", tasks=["weather"])
    with pytest.raises(InputError, match="task 'qa' needs a context"):
        model.predict("good", tasks=["qa"])
    with pytest.raises(InputError, match="tasks must be a list of names or null, got 'qa'"):
        model.predict("good", tasks="qa")


def test_a_device_that_is_not_there_is_refused(word_bundle: Callable[..., Bundle]) -> None:
    for device in ("abacus", "cuda:99"):
        with pytest.raises(InputError, match=f"device '{device}': cannot be used"):
            MixtureOfExperts(word_bundle(), device)


# --- neighbours -------------------------------------------------------------------------------


def test_an_answer_does_not_depend_on_its_neighbours(model: MixtureOfExperts) -> None:
    together = model.predict(MIXED, explain=True)
    for request, answer in zip(MIXED, together, strict=True):
        assert_close(model.predict(request, explain=True), answer)
    backwards = model.predict(MIXED[::-1], explain=True)[::-1]
    assert_close(backwards, together)


def test_the_same_question_has_the_same_answer_to_the_bit(model: MixtureOfExperts) -> None:
    assert model.predict(MIXED, explain=True) == model.predict(MIXED, explain=True)


def test_two_tasks_of_a_text_cost_one_pass_of_the_encoder(model: MixtureOfExperts) -> None:
    passes: list[int] = []
    model.model.encoder.embeddings.register_forward_hook(lambda *_: passes.append(1))
    said = model.predict("the film was good", tasks=["sentiment", "intent"])
    assert len(said["answers"]) == 2 and len(passes) == 1
    model.predict("the film was good", tasks=["sentiment"])
    assert len(passes) == 2


def test_tokens_are_those_of_all_windows(model: MixtureOfExperts) -> None:
    asked = ["good film", {"text": "who led", "context": "an abbot led the monks"},
             {"text": "who was good", "context": CONTEXT}]
    # [CLS] good film [SEP]; 2 + 5 and three special ones; 30 tokens of context in two windows that
    # hold 32 - 3 - 3 = 26 of them, both full.
    assert model.count_tokens([model.parse(value) for value in asked]) == [4, 10, 64]


# --- streams ----------------------------------------------------------------------------------


def test_a_stream_holds_at_most_two_windows(model: MixtureOfExperts) -> None:
    # Two: the old one is let go when the new one has been read.
    rows, most = 3 * WINDOW, 0

    def live() -> int:
        return sum(type(thing) is Request for thing in gc.get_objects())

    def texts() -> Iterator[str]:
        nonlocal most
        for k in range(rows):
            if k % 255 == 0:
                most = max(most, live())
            yield "good" if k % 2 else "bad"

    gc.collect()
    before = live()
    seen = 0
    for answer in model.predict(texts()):
        assert set(answer["answers"]) <= {"sentiment", "intent"}
        seen += 1
    assert seen == rows
    assert 0 < most - before <= 2 * WINDOW


# --- explain ----------------------------------------------------------------------------------


def test_an_explanation_agrees_with_the_routing(model: MixtureOfExperts) -> None:
    assert all("explanation" not in answer for answer in model.predict(MIXED))
    for request, answer in zip(MIXED, model.predict(MIXED, explain=True), strict=True):
        said = answer["explanation"]
        assert sum(said["probabilities"].values()) == pytest.approx(1, abs=1e-6)
        intent = sum(said["probabilities"][f"intent-{k}"] for k in range(4))
        assert said["task_mass"]["intent"] == pytest.approx(intent, abs=1e-6)
        for chosen in answer["routing"]:
            assert said["task_mass"][chosen["task"]] == pytest.approx(chosen["probability"])
        assert said["distance"] is None and said["reason"] is None
        if isinstance(request, str):  # without a context two tasks are left
            first = answer["routing"][0]["task"]
            assert {first, said["runner_up"]} == {"sentiment", "intent"}
            mass = said["task_mass"]
            assert said["margin"] == pytest.approx(mass[first] - mass[said["runner_up"]])


@pytest.mark.parametrize("threshold", [-3.0, 3.0])
def test_why_it_abstained(word_bundle: Callable[..., Bundle], threshold: float) -> None:
    width = 2 * 32  # what the gate reads: a mean over the text beside one over all
    draw, centre_D = np.random.default_rng(0), np.zeros(width, dtype=np.float32)

    def kept() -> np.ndarray:
        return normalise(draw.normal(size=(5, width)).astype(np.float32), centre_D)

    reference = Reference(
        centre_D=centre_D,
        exemplars={name: kept() for name in ("sentiment", "qa", "intent")},
        strangers_XD=kept(),
        threshold=threshold,  # scores lie in [-2, 2]
    )
    model = MixtureOfExperts(word_bundle(Calibration(reference=reference)), "cpu")
    answer = model.predict("good", explain=True)
    said = answer["explanation"]
    assert set(said["distance"]) == {"sentiment", "qa", "intent", STRANGERS}
    assert answer["abstained"] == (threshold == -3.0)
    assert said["reason"] == answer.get("reason")
    named = model.predict("good", tasks=["intent"], explain=True)
    assert not named["abstained"] and named["explanation"]["reason"] is None
    assert named["explanation"]["distance"] == pytest.approx(said["distance"], abs=1e-5)
