"""Fitted temperatures and thresholds, against known answers and brute force."""

from __future__ import annotations

import numpy as np
import pytest

from moe.calibration import Calibration, fit_no_answer, fit_out_of_scope, fit_temperature
from moe.decode import log_softmax


def drawn_rows(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their softmax: calibrated as they are."""
    random = np.random.default_rng(0)
    logits = random.normal(size=(count, 4)) * 2
    noise = random.gumbel(size=logits.shape)
    return logits, (logits + noise).argmax(1)


@pytest.mark.parametrize("factor", [1 / 3, 1.0, 3.0])
def test_a_known_temperature_is_found(factor: float) -> None:
    logits, labels = drawn_rows(4000)
    assert fit_temperature(logits * factor, labels) == pytest.approx(factor, rel=0.06)


def test_the_temperature_has_the_smallest_cross_entropy() -> None:
    logits, labels = drawn_rows(200)

    def cross_entropy(temperature: float) -> float:
        return -log_softmax(logits / temperature)[np.arange(200), labels].mean()

    best = fit_temperature(logits, labels)
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 400))
    assert cross_entropy(best) <= min(map(cross_entropy, grid)) + 1e-9


def test_bounds_of_the_temperature() -> None:
    logits, labels = np.array([[5.0, 0.0]] * 4), np.zeros(4, dtype=np.int64)
    assert fit_temperature(logits, labels) == pytest.approx(0.05)      # always right
    assert fit_temperature(logits, 1 - labels) == pytest.approx(20.0)  # always wrong
    assert fit_temperature(np.zeros((0, 2)), np.array([], dtype=np.int64)) == 1.0


def test_fit_out_of_scope() -> None:
    scores = np.array([1.0, 2.0, 3.0, 4.0])
    outside = np.array([False, False, True, True])
    assert fit_out_of_scope(scores, outside, 1.0) == 2.5
    assert fit_out_of_scope(scores, outside, 0.5) == 3.5
    assert fit_out_of_scope(scores, np.zeros(4, dtype=bool), 0.5) is None


def mean_f1(threshold: float, margin: np.ndarray, span: np.ndarray, none: np.ndarray) -> float:
    return float(np.where(margin > threshold, none, span).mean())


@pytest.mark.parametrize("seed", range(20))
def test_fit_no_answer_equals_brute_force(seed: int) -> None:
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 12))
    margin = random.uniform(-1, 1, count)
    span = random.choice([0.0, 50.0, 100.0], count)
    none = random.choice([0.0, 100.0], count)
    threshold = fit_no_answer(margin, span, none)
    candidates = [-2.0, *margin]  # nothing is answered, or all up to a row
    best = max(mean_f1(c, margin, span, none) for c in candidates)
    assert mean_f1(threshold, margin, span, none) == pytest.approx(best)
    assert threshold not in margin


def test_fit_no_answer_by_hand() -> None:
    margin = np.array([0.6, -0.4, 0.2])
    # Answering the rows up to 0.2 and refusing 0.6 is right in all three.
    threshold = fit_no_answer(margin, np.array([0.0, 100.0, 100.0]), np.array([100.0, 0.0, 0.0]))
    assert threshold == pytest.approx(0.4)
    # Never, or always, refusing: one below the lowest, one above the highest margin.
    zero, full = np.zeros(3), np.full(3, 100.0)
    assert fit_no_answer(margin, zero, full) == pytest.approx((-1.4 - 0.4) / 2)
    assert fit_no_answer(margin, full, zero) == pytest.approx((0.6 + 1.6) / 2)


def test_calibration_to_dict_and_back() -> None:
    calibration = Calibration(temperature={"a-0": 1.5}, out_of_scope={"b": 2.0},
                              no_answer={"c": -0.1})
    values = calibration.to_dict()
    assert values == {"temperature": {"a-0": 1.5}, "out_of_scope": {"b": 2.0},
                      "no_answer": {"c": -0.1}}
    assert Calibration(**values) == calibration
    values["temperature"]["a-0"] = 9.0
    assert calibration.temperature["a-0"] == 1.5


def test_fit_no_answer_with_equal_margins() -> None:
    margin = np.zeros(3)
    span, none = np.array([100.0, 0.0, 0.0]), np.array([0.0, 100.0, 100.0])
    # All or none can be answered: 100 / 3 against 200 / 3.
    threshold = fit_no_answer(margin, span, none)
    assert mean_f1(threshold, margin, span, none) == pytest.approx(200 / 3)
