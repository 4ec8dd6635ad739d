"""Fitted temperatures and thresholds, against known answers and brute force."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moe.abstain import Reference
from moe.calibration import (
    Calibration,
    fit_confidence,
    fit_no_answer,
    fit_out_of_scope,
    fit_second_task,
    fit_temperature,
    recall_threshold,
)
from moe.decode import log_softmax, spread


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


@pytest.mark.parametrize(("temperature", "saturation"), [(1.0, 6.0), (0.5, 6.0), (2.0, 4.0)])
def test_a_known_saturation_is_found(temperature: float, saturation: float) -> None:
    """Rows whose true logits were squeezed to margins below the saturation."""
    random = np.random.default_rng(0)
    true = random.normal(size=4000) * 6 / temperature
    labels = (random.random(4000) < 1 / (1 + np.exp(-true))).astype(int)
    squeezed = saturation * np.tanh(true * temperature / saturation)
    logits = np.stack([np.zeros(4000), squeezed], axis=1)
    found, bound = fit_confidence(logits, labels)
    assert bound == pytest.approx(saturation, rel=0.05)
    assert found == pytest.approx(temperature, rel=0.1)
    assert fit_temperature(logits, labels) < found  # alone it has to stand for both


def test_what_does_not_saturate_keeps_about_its_temperature() -> None:
    logits, labels = drawn_rows(4000)
    temperature, bound = fit_confidence(logits, labels)
    wide = logits if bound is None else spread(logits, bound)
    assert np.abs(wide / temperature - logits).mean() < 0.1


def test_confidence_of_nothing_and_of_one_class() -> None:
    assert fit_confidence(np.zeros((0, 2)), np.array([], dtype=np.int64)) == (1.0, None)
    assert fit_confidence(np.zeros((3, 2)), np.zeros(3, dtype=np.int64))[1] is None
    assert fit_confidence(np.ones((3, 1)), np.zeros(3, dtype=np.int64))[1] is None


def test_what_is_fitted_for_experts_moves_with_them() -> None:
    ours = Calibration(temperature={"a": 1.0, "b": 2.0}, saturation={"a": 5.0, "b": 6.0},
                       second_task=0.5)
    theirs = Calibration(temperature={"x": 3.0, "y": 4.0}, saturation={"y": 7.0})
    found = ours.with_experts(theirs, {"x": "b", "y": "c"})
    assert found.temperature == {"a": 1.0, "b": 3.0, "c": 4.0}
    assert found.saturation == {"a": 5.0, "c": 7.0}  # b's own went with its temperature
    assert found.second_task == 0.5
    again = Calibration.from_saved(found.to_dict(), {})
    assert again == found


@pytest.mark.parametrize(("recall", "expected"), [
    (1.0, -2.5),    # all four are needed, the lowest is -1; half way down to -4
    (0.75, 0.5),    # three are 2, 5 and 9; half way from 2 to -1
    (0.6, 0.5),     # three again: two are half only
    (0.5, 4.0),     # 5 and 9; half way from 5 to the in-scope 3
    (0.25, 7.0), (0.01, 7.0),
])
def test_recall_threshold(recall: float, expected: float) -> None:
    scores = np.array([9.0, 3.0, 5.0, 2.0, -1.0, -4.0])
    outside = np.array([True, False, True, True, True, False])
    threshold = recall_threshold(scores, outside, recall)
    assert threshold == expected
    assert (scores[outside] > threshold).mean() >= recall


def test_recall_threshold_below_everything() -> None:
    assert recall_threshold(np.array([2.0, 5.0]), np.array([True, True]), 1.0) == 1.0


def test_recall_threshold_counts_exactly() -> None:
    scores = np.arange(100.0)
    threshold = recall_threshold(scores, np.ones(100, dtype=bool), 0.55)
    assert (scores > threshold).mean() == pytest.approx(0.55)


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
                              no_answer={"c": -0.1}, second_task=0.3)
    values = calibration.to_dict()
    assert values == {"temperature": {"a-0": 1.5}, "out_of_scope": {"b": 2.0},
                      "no_answer": {"c": -0.1}, "second_task": 0.3, "abstain": None}
    assert calibration.arrays() == {}
    assert Calibration.from_saved(values, {}) == calibration
    values["temperature"]["a-0"] = 9.0
    assert calibration.temperature["a-0"] == 1.5


def test_a_reference_to_arrays_and_back() -> None:
    eye = np.eye(2, dtype=np.float32)
    reference = Reference(centre_D=eye[0], exemplars={"qa": eye, "exemplars": eye[1:]},
                          strangers_XD=-eye, threshold=0.25)
    calibration = Calibration(reference=reference)
    values, arrays = calibration.to_dict(), calibration.arrays()
    assert json.loads(json.dumps(values))["abstain"] == 0.25  # and no array among the numbers
    assert set(arrays) == {"centre", "strangers", "exemplars.qa", "exemplars.exemplars"}
    loaded = Calibration.from_saved(values, arrays).reference
    assert loaded is not None and loaded.threshold == 0.25
    assert loaded.centre_D.tolist() == [1, 0]
    assert loaded.strangers_XD.tolist() == [[-1, 0], [0, -1]]
    assert {k: v.tolist() for k, v in loaded.exemplars.items()} == {
        "qa": [[1, 0], [0, 1]], "exemplars": [[0, 1]]}
    with pytest.raises(KeyError, match="centre"):  # the checkpoint says what it lacks
        Calibration.from_saved(values, {})


def test_numbers_of_an_older_checkpoint() -> None:
    saved = {"temperature": {"a-0": 1.5}, "out_of_scope": {}, "no_answer": {}}
    assert Calibration.from_saved(saved, {}) == Calibration(temperature={"a-0": 1.5})


# --- a second task ----------------------------------------------------------------------------


@pytest.mark.parametrize(("spurious", "expected"), [
    (0.0, 0.4),   # of the masses 0.1, 0.2, 0.3, 0.4 none may be above the threshold
    (0.24, 0.4),  # 0.24 of four rows is none
    (0.34, 0.3),  # one of four is: that with 0.4
])
def test_fit_second_task_by_hand(spurious: float, expected: float) -> None:
    assert fit_second_task(np.array([0.3, 0.1, 0.4, 0.2]), spurious) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(10))
def test_second_answers_of_rows_of_one_task_stay_within_their_share(seed: int) -> None:
    random = np.random.default_rng(seed)
    single = random.beta(1, 9, int(random.integers(1, 3000)))
    threshold = fit_second_task(single)
    assert (single > threshold).mean() <= 0.007
    # The lowest such: with the next lower mass as the threshold one row more would be above it.
    lower = single[single < threshold]
    assert len(lower) == 0 or (single > lower.max()).mean() > 0.007 - 1 / (len(single) - 0.5)


def test_fit_no_answer_with_equal_margins() -> None:
    margin = np.zeros(3)
    span, none = np.array([100.0, 0.0, 0.0]), np.array([0.0, 100.0, 100.0])
    # All or none can be answered: 100 / 3 against 200 / 3.
    threshold = fit_no_answer(margin, span, none)
    assert mean_f1(threshold, margin, span, none) == pytest.approx(200 / 3)
