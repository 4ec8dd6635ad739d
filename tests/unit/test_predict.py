"""Requests that fit no task, and requests that fit two: what the answer says."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moe.abstain import Reference, fit_reference, stranger_scores
from moe.calibration import Calibration
from moe.checkpoint import Bundle
from moe.collect import embed
from moe.data.collate import collate_requests
from moe.data.windows import make_windows
from moe.predict import MixtureOfExperts

STRANGE, KNOWN = "zz 77 zz", "good film"
PASSAGE = "an abbot led the monks " * 8  # 40 tokens: several windows of 32


def embedded(bundle: Bundle, text: str, context: str | None = None) -> np.ndarray:
    (text_ids, _), (context_ids, _) = bundle.tokenizer.encode([text, context or ""])
    windows = make_windows(text_ids, context_ids if context else None, max_length=32, stride=4)
    return embed(bundle.model, collate_requests([0], [windows], bundle.tokenizer))


def reference_of(bundle: Bundle) -> Reference:
    """Two tasks know a text each; the threshold is the score of a known text."""
    known = embedded(bundle, KNOWN)
    own = {"sentiment": known, "qa": embedded(bundle, "who led", "the monks")}
    reference = fit_reference(own, embedded(bundle, STRANGE), [known])
    assert reference is not None
    return reference


def model_of(bundle: Bundle, **changes: Any) -> MixtureOfExperts:
    calibration = Calibration(reference=replace(reference_of(bundle), **changes))
    return MixtureOfExperts(replace(bundle, calibration=calibration), "cpu")


@pytest.fixture
def bundle(word_bundle: Callable[..., Bundle]) -> Bundle:
    return word_bundle()


def test_on_a_cpu_layers_are_one_operator_each(bundle: Bundle) -> None:
    model = MixtureOfExperts(bundle, "cpu").model
    with torch.inference_mode():
        assert model.fused is not None and model.fused.fits(model.encoder, 5, None)


# --- no task ----------------------------------------------------------------------------------


def test_a_text_that_fits_no_task_is_refused(bundle: Bundle) -> None:
    model = model_of(bundle)
    reference = model.bundle.calibration.reference
    assert reference is not None
    (score,) = stranger_scores(embedded(bundle, STRANGE), reference)
    answer = model.predict({"id": "7", "text": STRANGE})
    assert list(answer) == ["id", "abstained", "routing", "answers", "reason"]
    assert (answer["id"], answer["abstained"], answer["answers"]) == ("7", True, {})
    assert answer["reason"] == (
        f"fits no task: closer to texts outside sentiment, qa, intent (score {score:.2f}, refused "
        f"above {reference.threshold:.2f}); name the tasks to get an answer"
    )
    assert answer["routing"]  # what the gate would have chosen is still said


def test_a_text_at_the_threshold_is_answered(bundle: Bundle) -> None:
    answer = model_of(bundle).predict(KNOWN)
    assert list(answer) == ["abstained", "routing", "answers"]
    assert answer["abstained"] is False and len(answer["answers"]) == 1


def test_without_a_reference_nothing_is_refused(bundle: Bundle) -> None:
    answers = MixtureOfExperts(bundle, "cpu").predict([STRANGE, KNOWN])
    assert [answer["abstained"] for answer in answers] == [False, False]
    assert all(answer["answers"] and "reason" not in answer for answer in answers)


def test_with_named_tasks_nothing_is_refused(bundle: Bundle) -> None:
    model = model_of(bundle, threshold=-3.0)  # below every score
    named = {"text": STRANGE, "tasks": ["sentiment", "intent"]}
    answers = model.predict([{"text": STRANGE}, named, {"text": KNOWN}, named])
    assert [answer["abstained"] for answer in answers] == [True, False, True, False]
    assert [set(answer["answers"]) for answer in answers] == [
        set(), {"sentiment", "intent"}, set(), {"sentiment", "intent"}]
    assert model.predict(STRANGE, tasks=["sentiment"])["abstained"] is False
    # The answers are those that a model without a reference gives.
    plain = MixtureOfExperts(bundle, "cpu").predict([named, named])[0]["answers"]
    for task, answer in answers[1]["answers"].items():
        assert answer["label"] == plain[task]["label"]
        assert answer["score"] == pytest.approx(plain[task]["score"], abs=1e-5)


def test_a_refusal_does_not_depend_on_the_neighbours(bundle: Bundle) -> None:
    model = model_of(bundle, threshold=reference_of(bundle).threshold + 1e-3)
    texts = [STRANGE, KNOWN, KNOWN, STRANGE, KNOWN]
    answers = model.predict([{"id": str(i), "text": text} for i, text in enumerate(texts)])
    assert [answer["abstained"] for answer in answers] == [text == STRANGE for text in texts]
    assert [answer["id"] for answer in answers] == ["0", "1", "2", "3", "4"]


def test_a_long_request_is_judged_by_all_of_its_windows(bundle: Bundle) -> None:
    reference = reference_of(bundle)
    (own,) = stranger_scores(embedded(bundle, "who led", PASSAGE), reference)
    (ids, _), (context_ids, _) = bundle.tokenizer.encode(["who led", PASSAGE])
    windows = make_windows(ids, context_ids, max_length=32, stride=4)
    assert len(windows) > 1
    first = embed(bundle.model, collate_requests([0], [windows[:1]], bundle.tokenizer))
    assert abs(stranger_scores(first, reference)[0] - own) > 0.01  # so that it matters
    request = {"text": "who led", "context": PASSAGE}
    for threshold, refused in ((own - 1e-3, True), (own + 1e-3, False)):
        model = model_of(bundle, threshold=float(threshold))
        assert model.predict(request)["abstained"] is refused
        # A neighbour must not take the place of a window.
        assert model.predict([KNOWN, request])[1]["abstained"] is refused


def test_the_reason_names_numbers_that_differ(bundle: Bundle) -> None:
    reason = model_of(bundle, threshold=-1.25).predict(STRANGE)["reason"]
    score, threshold = map(float, re.findall(r"score (\S+), refused above (\S+)\)", reason)[0])
    assert score > threshold == -1.25


# --- two tasks --------------------------------------------------------------------------------


@pytest.mark.parametrize(("threshold", "alone", "with_context"), [
    # Masses by number of experts: sentiment 2/7 = 0.286, qa 1/7 = 0.143, intent 4/7 = 0.571.
    (None, ["intent"], ["intent"]),
    (0.3, ["intent"], ["intent"]),
    (0.2, ["intent", "sentiment"], ["intent", "sentiment"]),
    (0.1, ["intent", "sentiment"], ["intent", "sentiment", "qa"]),
])
def test_a_request_gets_the_answers_that_the_fitted_threshold_allows(
    word_bundle: Callable[..., Bundle], tmp_path: Path,
    threshold: float | None, alone: list[str], with_context: list[str],
) -> None:
    made = word_bundle(Calibration(second_task=threshold), kind="linear", temperature=1.0)
    with torch.no_grad():
        made.model.gate.scores.weight.zero_()
        made.model.gate.scores.bias.zero_()
    MixtureOfExperts(made, "cpu").save_pretrained(tmp_path)
    model = MixtureOfExperts.from_pretrained(tmp_path, "cpu")
    answers = model.predict([{"text": KNOWN}, {"text": KNOWN, "context": "the monks"}])
    for answer, expected in zip(answers, (alone, with_context), strict=True):
        assert [entry["task"] for entry in answer["routing"]] == expected
        assert set(answer["answers"]) == set(expected)
    # Named tasks are the ones that answer, no more and no fewer.
    named = model.predict({"text": KNOWN, "tasks": ["sentiment"]})
    assert list(named["answers"]) == ["sentiment"]
