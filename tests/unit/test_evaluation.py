"""What a refusal, an oracle and a second answer do to the numbers, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moe.abstain import Reference
from moe.calibration import Calibration
from moe.collect import Answers
from moe.decode import WindowSaid
from moe.evaluation import evaluate, refusals
from moe.forms.span import SpanSaid
from moe.types import TaskSpec

SPECS = (
    TaskSpec(name="qa", type="span", num_experts=1),
    TaskSpec(name="intent", type="classifier", num_experts=1, labels=("pay", "ask"),
             out_of_scope="oos"),
    TaskSpec(name="mood", type="classifier", num_experts=1, labels=("bad", "good")),
)


def vectors(*rows: Any) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


# The score of (x, y) is y - x: strangers are at (0, 1), the rows of both tasks at (1, 0).
REFERENCE = Reference(centre_D=vectors(0, 0), strangers_XD=vectors([0, 1]), threshold=0.5,
                      exemplars={"qa": vectors([1, 0]), "intent": vectors([1, 0])})
NEAR, FAR, BETWEEN = [1, 0], [0, 1], [0.6, 0.8]  # scores -1, 1 and 0.2
ABSTAINS = Calibration(reference=REFERENCE)


class Table:
    """The part of a TaskTable that is measured."""

    def __init__(self, task: int, labels: list[int], answers: Any = None) -> None:
        self.spec, self.task = SPECS[task], task
        self._labels, self.rows = np.array(labels), {"answers": answers}

    def labels(self) -> np.ndarray:
        return self._labels


def said(pooled: list, routed: list[bool], **changes: Any) -> Answers:
    count = len(pooled)
    values = {
        "row_N": np.arange(count), "pooled_ND": vectors(*pooled),
        "allowed_NT": np.ones((count, 3), dtype=bool), "mass_NT": np.full((count, 3), 1 / 3),
        "probabilities_NE": np.full((count, 3), 1 / 3), "routed_N": np.array(routed),
        "chosen_NE": np.ones((count, 3), dtype=bool),
    }
    return Answers(**{**values, **changes})


def votes(expert: int, logits: np.ndarray) -> tuple[WindowSaid, ...]:
    """One expert's answer to each row."""
    return tuple(WindowSaid(experts=[expert], weights=[1.0], logits=[row], offset=0)
                 for row in logits)


def qa() -> tuple[Table, Answers]:
    """Four right answers: sent here, refused, sent elsewhere, sent here."""
    answers = said([NEAR, FAR, NEAR, BETWEEN], [True, True, False, True],
                   said=(SpanSaid(text="abbot", start=0, end=5, score=0.9, null=0.0),) * 4)
    return Table(0, [-1] * 4, [["abbot"]] * 4), answers


def intent() -> tuple[Table, Answers]:
    """In scope and right: sent here, refused, sent elsewhere. Then four out of scope: refused,
    and refused elsewhere; rejected here, and rejected elsewhere, where it cannot count."""
    logits = np.array([[3.0, 0, 0]] * 5 + [[0.0, 0, 9]] * 2)
    pooled = [NEAR, FAR, NEAR, FAR, FAR, NEAR, NEAR]
    answers = said(pooled, [True, True, False, True, False, True, False],
                   said=votes(1, logits))
    return Table(1, [0, 0, 0, 2, 2, 2, 2]), answers


def measured(part: tuple[Table, Answers], calibration: Calibration, **options: Any) -> dict:
    table, answers = part
    return evaluate([table], [answers], calibration, SPECS, **options).tasks[table.spec.name]


# --- refusals ---------------------------------------------------------------------------------


def test_refusals_are_the_rows_above_the_threshold() -> None:
    answers = said([NEAR, FAR, BETWEEN], [True] * 3)
    assert refusals(answers, Calibration()).tolist() == [False] * 3
    assert refusals(answers, ABSTAINS).tolist() == [False, True, False]
    lower = Calibration(reference=replace(REFERENCE, threshold=0.1))
    assert refusals(answers, lower).tolist() == [False, True, True]


def test_a_refused_question_scores_nothing() -> None:
    # Two of four rows are sent here and not refused.
    expected = {"n": 4, "f1": 50.0, "exact_match": 50.0, "routing_accuracy": 0.75,
                "abstain_rate": 0.25, "second_answer_rate": 0.0}
    assert measured(qa(), ABSTAINS) == pytest.approx(expected)
    assert measured(qa(), Calibration())["f1"] == 75.0


def test_a_refusal_is_wrong_in_scope_and_right_out_of_scope() -> None:
    numbers = measured(intent(), replace(ABSTAINS, out_of_scope={"intent": 0.0}))
    assert numbers["in_scope_accuracy"] == pytest.approx(1 / 3)  # the row that was sent here
    assert numbers["oos_recall"] == pytest.approx(3 / 4)         # two refused, one rejected
    # Of the rows in scope, whatever happens to the others.
    assert numbers["abstain_rate"] == pytest.approx(1 / 3)
    assert numbers["routing_accuracy"] == pytest.approx(2 / 3)


def test_without_a_reference_only_rejections_count() -> None:
    numbers = measured(intent(), Calibration(out_of_scope={"intent": 0.0}))
    assert numbers["in_scope_accuracy"] == pytest.approx(2 / 3)
    assert numbers["oos_recall"] == pytest.approx(1 / 4)
    assert numbers["abstain_rate"] == 0.0


def test_a_classifier_without_out_of_scope_rows() -> None:
    answers = said([NEAR, FAR, NEAR, NEAR], [True, True, True, False],
                   said=votes(2, np.array([[0.0, 3.0]] * 4)))
    numbers = measured((Table(2, [1, 1, 0, 1]), answers), ABSTAINS)
    assert numbers["accuracy"] == 0.25  # right; refused; wrong; elsewhere
    assert numbers["abstain_rate"] == 0.25


# --- oracle -----------------------------------------------------------------------------------


def test_with_oracle_routing_nothing_is_refused() -> None:
    numbers = measured(qa(), ABSTAINS, routing="oracle")
    assert (numbers["f1"], numbers["abstain_rate"]) == (100.0, 0.0)
    calibration = replace(ABSTAINS, out_of_scope={"intent": 0.0})
    numbers = measured(intent(), calibration, routing="oracle")
    assert numbers["in_scope_accuracy"] == 1.0
    assert numbers["oos_recall"] == 2 / 4  # the two that the expert rejects
    assert numbers["abstain_rate"] == 0.0
    # What the gate would have chosen stays what it is.
    assert numbers["routing_accuracy"] == pytest.approx(2 / 3)


# --- second answers ---------------------------------------------------------------------------


def test_second_answers_are_the_rows_with_a_second_mass_above_the_threshold() -> None:
    mass = np.array([[0.6, 0.3, 0.1], [0.6, 0.3, 0.1], [0.5, 0.1, 0.4], [0.9, 0.1, 0.0]])
    allowed = np.array([[True] * 3, [True, False, True], [True] * 3, [True] * 3])
    table, answers = qa()
    answers = replace(answers, mass_NT=mass, allowed_NT=allowed)
    # The second masses are 0.3, 0.1 (0.3 could not answer), 0.4 and 0.1.
    for threshold, expected in ((None, 0.0), (0.35, 0.25), (0.2, 0.5), (0.05, 1.0)):
        numbers = measured((table, answers), Calibration(second_task=threshold))
        assert numbers["second_answer_rate"] == expected


def test_a_request_that_names_its_task_or_is_refused_gets_no_second_answer() -> None:
    table, answers = qa()
    answers = replace(answers, mass_NT=np.tile([0.5, 0.5, 0.0], (4, 1)))
    both = replace(ABSTAINS, second_task=0.2)
    oracle = measured((table, answers), both, routing="oracle")
    assert oracle["second_answer_rate"] == 0.0
    # One of the four rows is refused.
    assert measured((table, answers), both)["second_answer_rate"] == 0.75
