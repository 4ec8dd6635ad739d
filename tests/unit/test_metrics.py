"""Metrics, against torchmetrics and arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from torchmetrics.text import SQuAD

from moe.metrics import (
    calibration_error,
    constant_span_f1,
    majority_accuracy,
    normalise_answer,
    out_of_scope_curve,
    span_scores,
    squad_scores,
)

PAIRS = [
    ("the monks", ["monks"]),                            # article
    ("An abbot!", ["an abbot."]),                        # case and punctuation
    ("theatre of another", ["atre of other"]),           # no articles inside words
    ("an abbot led", ["abbot"]),                         # f1 2 * 1 / (2 + 1)
    ("led by monks", ["monks", "by monks led", "x"]),    # the best of several
    ("monks monks", ["monks"]),                          # counted as often as in both
    ("abbot", ["monks"]),
    ("  two   words ", ["two words"]),
    ("U.S.A.", ["USA"]),
    ("state-of-the-art", ["state of art"]),              # a hyphen goes without a space
    ("12,000", ["12000", "12"]),
]


def test_squad_scores_equal_torchmetrics() -> None:
    rows = squad_scores([p for p, _ in PAIRS], [a for _, a in PAIRS])
    assert rows.shape == (len(PAIRS), 2)
    for (prediction, answers), row in zip(PAIRS, rows, strict=True):
        metric = SQuAD()
        metric.update(
            [{"prediction_text": prediction, "id": "0"}],
            [{"answers": {"answer_start": [0] * len(answers), "text": answers}, "id": "0"}],
        )
        expected = {name: value.item() for name, value in metric.compute().items()}
        assert row.tolist() == pytest.approx([expected["exact_match"], expected["f1"]], abs=1e-4)


def test_squad_scores_by_hand() -> None:
    rows = squad_scores(["an abbot led", "the monks"], [["abbot"], ["led", "monks"]])
    assert rows[0].tolist() == pytest.approx([0.0, 200 / 3])
    assert rows[1].tolist() == [100.0, 100.0]
    assert squad_scores([], []).shape == (0, 2)


@pytest.mark.parametrize(("prediction", "answers", "expected"), [
    ("", [], 100.0), ("abbot", [], 0.0), ("", ["abbot"], 0.0),
    ("the", [], 100.0),      # nothing is left of it
    ("", ["the"], 100.0),
])
def test_unanswerable_questions(prediction: str, answers: list[str], expected: float) -> None:
    assert squad_scores([prediction], [answers]).tolist() == [[expected, expected]]


def test_normalise_answer() -> None:
    assert normalise_answer(" The  Abbot, an\tElder's a! ") == "abbot elders"


def test_calibration_error_by_hand() -> None:
    # Of ten bins two are met: (0.5, 0.6] with mean 0.55, half right; (0.9, 1] with 0.95, all
    # right. 2/3 * |0.55 - 0.5| + 1/3 * |0.95 - 1| = 0.05.
    confidence = np.array([0.53, 0.57, 0.95])
    correct = np.array([True, False, True])
    assert calibration_error(confidence, correct, bins=10) == pytest.approx(0.05)
    # In one bin: |(0.53 + 0.57 + 0.95) / 3 - 2/3|.
    assert calibration_error(confidence, correct, bins=1) == pytest.approx(2.05 / 3 - 2 / 3)
    assert calibration_error(confidence, ~correct, bins=1) == pytest.approx(2.05 / 3 - 1 / 3)
    assert calibration_error(np.array([]), np.array([], dtype=bool)) == 0.0


def test_auroc_and_aupr_by_hand() -> None:
    scores = np.array([-500.0, -3.0, 2.0, 600.0, 700.0])
    outside = np.array([False, True, False, False, True])
    # Of 2 * 3 pairs 4 are in order: 700 above all three, -3 above -500.
    # Precision at the two positives, from the top: 1/1 and 2/4; each adds 1/2 of recall.
    auroc, aupr = out_of_scope_curve(scores, outside)
    assert auroc == pytest.approx(4 / 6)
    assert aupr == pytest.approx(0.5 * 1 + 0.5 * 2 / 4)


def test_auroc_of_ties_and_of_one_side() -> None:
    assert out_of_scope_curve(np.zeros(4), np.array([True, False, True, False]))[0] == 0.5
    for side in (True, False):
        assert out_of_scope_curve(np.arange(3.0), np.full(3, side)) == (0.0, 0.0)


def test_majority_accuracy() -> None:
    assert majority_accuracy(np.array([2, 0, 2, 1, 2])) == 3 / 5
    assert majority_accuracy(np.array([], dtype=np.int64)) == 0.0


def test_constant_span() -> None:
    contexts = ["w0 w1 abbot led w4", "v0 v1 monks led v4"]
    # Words 2 and 3 are right in both rows; any other piece shares less.
    assert constant_span_f1(contexts, [["abbot led"], ["monks led"]]) == 100.0
    # "No answer" is right in two of three rows.
    assert constant_span_f1([*contexts, "x"], [[], [], ["y"]]) == pytest.approx(200 / 3)
    # One word of each context, the fifth, is half of one answer of two words and all of another:
    # (2/3 + 1) / 2; the pair that ends with it is not better: (1 + 2/3) / 2.
    assert constant_span_f1(contexts, [["led w4"], ["v4"]]) == pytest.approx(100 * 5 / 6)


def test_span_scores() -> None:
    a, b, c = ("city", 0, 1), ("city", 0, 2), ("time", 0, 1)
    # Two of three predicted, and of four true spans; ends and types must be right, too.
    scores = span_scores([[a, c], [a], []], [[a, b], [a], [c]])
    assert scores == pytest.approx(
        {"precision": 200 / 3, "recall": 50.0, "f1": 2 * 2 / (3 + 4) * 100})
    assert set(span_scores([[]], [[]]).values()) == {0.0}
    assert span_scores([[a]], [[a]]) == {"precision": 100.0, "recall": 100.0, "f1": 100.0}


# --- known mistakes ---------------------------------------------------------------------------


def test_confidence_a_rounding_above_one() -> None:
    # |(1 + 0.6) / 2 - 1| in one bin; through a sigmoid it would be 0.31.
    confidence = np.array([1 + 1e-7, 0.6])
    assert calibration_error(confidence, np.ones(2, dtype=bool), bins=1) == pytest.approx(0.2)
