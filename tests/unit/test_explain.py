"""Explanations by hand, and against the score that decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moe.abstain import STRANGERS, Reference, nearest_cosines, normalise, stranger_scores
from moe.explain import explanation, refusals, similarities
from moe.types import TaskSpec

TASKS = (
    TaskSpec(name="mood", type="classifier", num_experts=2, labels=("a", "b")),
    TaskSpec(name="qa", type="span", num_experts=1),
    TaskSpec(name="intent", type="classifier", num_experts=1, labels=("x", "y")),
)


def explained(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "probability_E": np.array([0.25, 0.125, 0.5, 0.125]),
        "mass_T": np.array([0.375, 0.5, 0.125]),
        "answerable_T": np.array([True, True, True]),
        "distance": None,
        "strangeness": None,
        "fragmentation": 0.25,
        "reason": None,
    }
    return explanation(TASKS, **{**values, **changes})


def test_what_the_gate_saw() -> None:
    said = explained()
    assert said["probabilities"] == {
        "mood-0": 0.25, "mood-1": 0.125, "qa-0": 0.5, "intent-0": 0.125
    }
    assert said["task_mass"] == {"mood": 0.375, "qa": 0.5, "intent": 0.125}
    assert (said["runner_up"], said["margin"]) == ("mood", 0.125)  # 0.5 - 0.375
    assert said["distance"] is None and said["reason"] is None


def test_a_task_that_cannot_answer_is_no_runner_up() -> None:
    said = explained(answerable_T=np.array([True, False, True]))
    assert (said["runner_up"], said["margin"]) == ("intent", 0.25)  # 0.375 - 0.125
    alone = explained(answerable_T=np.array([False, True, False]))
    assert (alone["runner_up"], alone["margin"]) == (None, None)


def test_distance_and_reason_are_passed_on() -> None:
    said = explained(distance={"mood": 0.5, STRANGERS: 0.25}, strangeness=-0.25,
                     reason="fits no task")
    assert said["strangeness"] == -0.25 and said["fragmentation"] == 0.25
    assert said["distance"] == {"mood": 0.5, "strangers": 0.25}
    assert said["reason"] == "fits no task"


def reference(seed: int = 0, rows: int = 9) -> Reference:
    draw = np.random.default_rng(seed)

    def kept(count: int) -> np.ndarray:
        vectors_XD = draw.normal(size=(count, 4)).astype(np.float32)
        return normalise(vectors_XD, np.zeros(4, dtype=np.float32))

    return Reference(
        centre_D=draw.normal(size=4).astype(np.float32),
        exemplars={"mood": kept(rows), "qa": kept(2)},  # 2 is less than the number of neighbours
        strangers_XD=kept(rows),
        threshold=0.0,
    )


def test_similarities_by_hand() -> None:
    axis = np.eye(2, dtype=np.float32)
    known = Reference(
        centre_D=np.array([1.0, 0.0], dtype=np.float32),
        # Cosines with the x axis: 1, 0.8, 0.6 and -1, of which the three largest count.
        exemplars={"mood": np.array([[1, 0], [0.8, 0.6], [-1, 0], [0.6, -0.8]], dtype=np.float32)},
        strangers_XD=axis,  # cosines 1 and 0
        threshold=0.0,
    )
    pooled_ND = np.array([[3.0, 0.0]], dtype=np.float32)  # the x axis, centred
    said, = similarities(nearest_cosines(pooled_ND, known))
    assert said == {"mood": pytest.approx(0.8), "strangers": pytest.approx(0.5)}


def test_the_score_that_decides_is_that_of_the_similarities() -> None:
    pooled_ND = np.random.default_rng(5).normal(size=(20, 4)).astype(np.float32)
    known = reference()
    scores = stranger_scores(pooled_ND, known)
    said = similarities(nearest_cosines(pooled_ND, known))
    expected = [s[STRANGERS] - max(s["mood"], s["qa"]) for s in said]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_refusals_name_the_score_and_the_threshold() -> None:
    pooled_ND = np.random.default_rng(5).normal(size=(20, 4)).astype(np.float32)
    known = reference()
    scores = stranger_scores(pooled_ND, known)
    reasons = refusals(TASKS, nearest_cosines(pooled_ND, known), known)
    assert [reason is not None for reason in reasons] == (scores > 0).tolist()
    row = int(np.argmax(scores))
    assert f"score {scores[row]:.2f}, refused above 0.00" in str(reasons[row])
    assert "mood, qa, intent" in str(reasons[row])
