"""What validation fits, by hand: temperatures and thresholds, second answers, strangers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moe.calibration import Calibration
from moe.collect import Answers
from moe.data.routing import RoutingRow, RoutingTable
from moe.data.windows import TextTokenizer
from moe.decode import WindowSaid
from moe.fitting import fit_abstain, fit_calibration
from moe.forms.span import SpanSaid
from moe.types import TaskSpec

MOOD = TaskSpec(name="mood", type="classifier", num_experts=1, labels=("bad", "good"))
QA = TaskSpec(name="qa", type="span", num_experts=1, can_be_unanswerable=True)
INTENT = TaskSpec(name="intent", type="classifier", num_experts=2, labels=("pay", "ask"),
                  out_of_scope="oos")
EXPERTS = ("mood-0", "qa-0", "intent-0", "intent-1")
TASKS = ("mood", "qa", "intent")


class Table:
    """The part of a TaskTable that is fitted on."""

    def __init__(self, spec: TaskSpec, labels: list[int], answers: Any = None) -> None:
        self.spec, self.task = spec, TASKS.index(spec.name)
        self._labels, self.rows = np.array(labels), {"answers": answers}

    def labels(self) -> np.ndarray:
        return self._labels


def said(mass: Any, **changes: Any) -> Answers:
    """What the gate said of rows 0, 1, 2, ... with this mass on each task."""
    mass_NT = np.array(mass)
    count = len(mass_NT)
    values = {
        "row_N": np.arange(count), "pooled_ND": np.zeros((count, 2), dtype=np.float32),
        "allowed_NT": np.ones(mass_NT.shape, dtype=bool), "mass_NT": mass_NT,
        "probabilities_NE": np.full((count, 4), 0.25), "routed_N": np.ones(count, dtype=bool),
        "chosen_NE": np.zeros((count, 4), dtype=bool),
    }
    return Answers(**{**values, **changes})


def votes(experts: list[int], logits: Any) -> tuple[WindowSaid, ...]:
    """The answer of one expert to each row."""
    return tuple(WindowSaid(experts=[expert], weights=[1.0], logits=[np.array(row)], offset=0)
                 for expert, row in zip(experts, logits, strict=True))


def span(text: str, score: float, null: float) -> SpanSaid:
    return SpanSaid(text=text, start=0, end=len(text), score=score, null=null)


EQUAL = [1 / 3, 1 / 3, 1 / 3]

# --- temperatures and thresholds --------------------------------------------------------------


def intent_answers() -> Answers:
    """Rows 2, 0 and 1: out of scope, right, wrong."""
    logits = [[0.0, 0.0, 4.0], [5.0, 0.0, 0.0], [5.0, 0.0, 0.0]]
    return said([EQUAL] * 3, row_N=np.array([2, 0, 1]), said=votes([2, 2, 3], logits))


def test_a_classifier_is_fitted_by_expert() -> None:
    mood = said([EQUAL] * 2, said=votes([0, 0], [[0.0, 3.0], [3.0, 0.0]]))
    tables = [Table(MOOD, [1, 0]), Table(INTENT, [0, 1, 2])]
    fitted = fit_calibration(tables, [mood, intent_answers()], EXPERTS, {"intent": 0.75})
    # Always right is as sharp as allowed, always wrong as flat; the row out of scope has no part.
    assert fitted.temperature == pytest.approx({"mood-0": 0.05, "intent-0": 0.05, "intent-1": 20.0})
    # Scores 4/2 - log 2 of the row out of scope, 0 - log(e^5 + 1) of the others: half way.
    half_way = (2 - np.log(2) - np.log(np.exp(5) + 1)) / 2
    assert fitted.out_of_scope == pytest.approx({"intent": half_way})
    assert (fitted.no_answer, fitted.second_task, fitted.reference) == ({}, None, None)


def test_the_recall_is_that_of_the_task() -> None:
    logits = [[0.0, 0.0, 4.0], [0.0, 0.0, 2.0], [0.0, 0.0, 0.0]]
    answers = said([EQUAL] * 3, said=votes([2, 2, 2], logits))
    table = Table(INTENT, [2, 2, 0])
    # Scores are 2, 1 and 0, less log 2: half of the rows out of scope, or both of them.
    for recall, expected in ((0.5, 1.5), (1.0, 0.5)):
        fitted = fit_calibration([table], [answers], EXPERTS, {"intent": recall, "mood": 0.1})
        assert fitted.out_of_scope == pytest.approx({"intent": expected - np.log(2)})
    inside = Table(INTENT, [0, 1, 0])
    assert fit_calibration([inside], [answers], EXPERTS, {"intent": 0.5}).out_of_scope == {}


def test_a_span_task_is_fitted_where_it_can_be_unanswerable() -> None:
    table = Table(QA, [-1, -1], answers=[["abbot"], []])
    # Rows 1 and 0: p(none) - p(span) is -0.2 where there is no answer, -0.6 where there is.
    answers = said([EQUAL] * 2, row_N=np.array([1, 0]),
                   said=(span("monks", 0.5, 0.3), span("abbot", 0.7, 0.1)))
    assert fit_calibration([table], [answers], EXPERTS, {}).no_answer == pytest.approx({"qa": -0.4})
    table.spec = replace(QA, can_be_unanswerable=False)
    assert fit_calibration([table], [answers], EXPERTS, {}) == Calibration()


# --- a second task ----------------------------------------------------------------------------


def routing_table(tokenizer: TextTokenizer, *tasks: tuple[str, ...]) -> RoutingTable:
    rows = [RoutingRow(text="who led", context=None, tasks=names) for names in tasks]
    return RoutingTable(rows, TASKS, tokenizer)


def single_rows() -> tuple[list[Table], list[Answers]]:
    """Rows of one task, of which the gate gives another task 0.15, 0.2, 0.1 and 0.05 at most."""
    mood = said([[0.8, 0.15, 0.05], [0.5, 0.3, 0.2]],
                # The second row has no passage: qa, with its 0.3, could not answer.
                allowed_NT=np.array([[True, True, True], [True, False, True]]),
                said=votes([0, 0], [[0.0, 3.0], [3.0, 0.0]]))
    qa = said([[0.05, 0.85, 0.1], [0.0, 0.95, 0.05]],
              said=(span("a", 0.5, 0.1), span("b", 0.5, 0.1)))
    spec = replace(QA, can_be_unanswerable=False)
    return [Table(MOOD, [1, 0]), Table(spec, [-1, -1])], [mood, qa]


def test_a_second_task_is_fitted_on_routing_rows_of_two(word_tokenizer: TextTokenizer) -> None:
    table = routing_table(word_tokenizer, ("mood", "qa"), ("intent",), (), ("intent", "qa"), TASKS)
    gate = said([[0.2, 0.35, 0.45], [0.6, 0.3, 0.1], [0.25, 0.25, 0.5], [0.3, 0.1, 0.6],
                 [0.21, 0.22, 0.57]], row_N=np.array([3, 0, 1, 2, 4]))
    tables, answers = single_rows()
    fitted = fit_calibration(tables, answers, EXPERTS, {}, (table, gate))
    assert fitted.second_task == pytest.approx(0.2)  # above it no row of one task
    # The rest is as without routing rows.
    plain = fit_calibration(tables, answers, EXPERTS, {})
    assert plain.second_task is None
    assert replace(fitted, second_task=None) == plain


def test_without_routing_rows_of_two_there_is_one_answer(word_tokenizer: TextTokenizer) -> None:
    table = routing_table(word_tokenizer, ("mood",), (), ("qa",))
    fitted = fit_calibration(*single_rows(), EXPERTS, {}, (table, said([EQUAL] * 3)))
    assert fitted.second_task is None


# --- strangers --------------------------------------------------------------------------------


def vectors(*rows: Any) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


EXEMPLARS = {"mood": vectors([1, 0]), "qa": vectors([-1, 0])}


def test_strangers_are_the_held_out_rows_without_a_task(word_tokenizer: TextTokenizer) -> None:
    table = routing_table(word_tokenizer, ("mood",), (), ("mood", "qa"), ())
    gate = said([EQUAL] * 4, row_N=np.array([3, 0, 1, 2]),
                pooled_ND=vectors([0, 2], [5, 5], [0, -3], [7, -7]))
    answers = [said([EQUAL], pooled_ND=vectors([4, 3])), said([EQUAL], pooled_ND=vectors([-3, 4]))]
    fitted = fit_abstain(EXEMPLARS, answers, (table, gate))
    assert fitted is not None
    assert fitted.strangers_XD.tolist() == [[0, 1], [0, -1]]  # rows 3 and 1
    assert {k: v.tolist() for k, v in fitted.exemplars.items()} == {
        "mood": [[1, 0]], "qa": [[-1, 0]]}
    # The mean cosine to the two strangers is 0; to the tasks it is 0.8 and 0.6.
    assert fitted.threshold == pytest.approx(0 - 0.6, abs=1e-6)


def test_without_strangers_nothing_is_refused(word_tokenizer: TextTokenizer) -> None:
    table = routing_table(word_tokenizer, ("mood",), ("qa",))
    answers = [said([EQUAL], pooled_ND=vectors([4, 3]))]
    gate = said([EQUAL] * 2, pooled_ND=vectors([0, 2], [5, 5]))
    assert fit_abstain(EXEMPLARS, answers, (table, gate)) is None
