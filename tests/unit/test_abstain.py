"""What fits no task: scores against arithmetic, thresholds against shares."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from moe.abstain import (
    NEIGHBOURS,
    REFUSED,
    Reference,
    fit_reference,
    nearest,
    nearest_cosines,
    normalise,
    refusal_scores,
    stranger_scores,
    with_threshold,
)


def vectors(*rows: Any) -> np.ndarray:
    return np.array(rows, dtype=np.float32)


def reference(threshold: float = 0.0, **changes: Any) -> Reference:
    """Task a lies on the x axis, b on the y axis, strangers at -x; the centre is 0."""
    values = {"centre_D": vectors(0, 0), "exemplars": {"a": vectors([1, 0]), "b": vectors([0, 1])},
              "strangers_XD": vectors([-1, 0]), "threshold": threshold}
    return Reference(**{**values, **changes})


# --- scores -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("point", "expected"), [
    ([1, 0], -1 - 1),       # cosine -1 to the strangers, 1 to a and 0 to b, the better of which
    ([0, 1], 0 - 1),
    ([-1, 0], 1 - 0),
    ([0, -1], 0 - 0),
    ([0.6, 0.8], -0.6 - 0.8),
    ([-0.6, 0.8], 0.6 - 0.8),
    ([-0.8, -0.6], 0.8 + 0.6),
    ([-0.0008, -0.0006], 0.8 + 0.6),  # the length says nothing
    ([0, 0], 0 - 0),                  # and where there is none, no NaN
])
def test_scores_by_hand(point: list[float], expected: float) -> None:
    score, = stranger_scores(vectors(point), reference())
    assert score == pytest.approx(expected, abs=1e-6)


def test_scores_are_taken_from_the_centre() -> None:
    moved = reference(centre_D=vectors(10, -5))
    points = vectors([9, -5], [10, -3], [10, 0])
    # From the centre these are (-1, 0), (0, 2) and (0, 5).
    assert stranger_scores(points, moved).tolist() == pytest.approx([1, -1, -1], abs=1e-6)


def test_similarity_is_the_mean_of_the_three_nearest() -> None:
    assert NEIGHBOURS == 3
    kept = vectors([1, 0], [-1, 0], [0.8, 0.6], [0.6, -0.8], [0, 1])
    near = reference(exemplars={"a": kept}, strangers_XD=vectors([0, 1]))
    # Of the cosines 1, -1, 0.8, 0.6 and 0 the best three; 0 to the stranger.
    score, = stranger_scores(vectors([2, 0]), near)
    assert score == pytest.approx(-(1 + 0.8 + 0.6) / 3)
    # Two rows are all there are: (1 + 0.6) / 2, also among strangers.
    two = vectors([1, 0], [0.6, 0.8])
    score, = stranger_scores(vectors([2, 0]), reference(strangers_XD=two))
    assert score == pytest.approx((1 + 0.6) / 2 - 1)


def test_the_order_of_the_tasks_says_nothing() -> None:
    points = vectors([1, 0], [0, 1], [-1, 0])
    together = stranger_scores(points, reference())
    assert together.tolist() == pytest.approx([-2, -1, 1], abs=1e-6)
    backwards = reference(exemplars={"b": vectors([0, 1]), "a": vectors([1, 0])})
    assert np.array_equal(stranger_scores(points, backwards), together)  # a loaded one may differ


# --- fitting ----------------------------------------------------------------------------------


def test_the_centre_is_the_mean_of_the_tasks_not_of_the_rows() -> None:
    exemplars = {"a": vectors([4, 1], [4, 1], [4, 1]), "b": vectors([0, -1])}
    strangers = vectors([2, -3], [5, 4])
    fitted = fit_reference(exemplars, strangers, [exemplars["a"], exemplars["b"]])
    assert fitted is not None
    assert fitted.centre_D.tolist() == [2, 0]  # of (4, 1) and (0, -1); of the rows (3, 0.5)
    # From there (2, 1), (-2, -1), (0, -3) and (3, 4), at length 1 and in half precision.
    root, half = np.sqrt(5), {"atol": 5e-4, "rtol": 0}
    np.testing.assert_allclose(fitted.exemplars["a"], [[2 / root, 1 / root]] * 3, **half)
    np.testing.assert_allclose(fitted.exemplars["b"], [[-2 / root, -1 / root]], **half)
    np.testing.assert_allclose(fitted.strangers_XD, [[0, -1], [0.6, 0.8]], **half)


def circle(*degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def fit_circle(*validation: np.ndarray, **options: Any) -> Reference:
    """a at 0 degrees, b at 180, strangers at 90: the score at x is sin(x) - |cos(x)|."""
    fitted = fit_reference({"a": circle(0), "b": circle(180)}, circle(90), validation, **options)
    assert fitted is not None
    return fitted


def score_at(degree: float) -> Any:
    angle = np.deg2rad(degree)
    return pytest.approx(np.sin(angle) - abs(np.cos(angle)), abs=1e-3)


@pytest.mark.parametrize(("refused", "expected"), [
    (0.0, 80),   # the highest of a's rows: nothing is above it
    (0.19, 80),  # one of five would be 0.2
    (0.25, 60),  # rank 0.75 * 4 = 3 of the five, counted from 0
    (0.5, 40),
])
def test_the_threshold_is_that_of_the_task_which_needs_the_highest(
    refused: float, expected: float
) -> None:
    a, b = circle(20, 80, 0, 60, 40), circle(180, 170, 160)
    fitted = fit_circle(a, b, refused=refused)
    assert fitted.threshold == score_at(expected)
    assert fit_circle(b, a, refused=refused).threshold == fitted.threshold
    alone = fit_circle(b, refused=refused)
    assert alone.threshold < fitted.threshold
    # A threshold is fitted anew without moving anything else.
    again = with_threshold(alone, [a, b], refused=refused)
    assert again == replace(alone, threshold=fitted.threshold)


def test_unusual_rows_raise_the_threshold_as_a_task_does() -> None:
    usual = circle(20, 0, 10)
    assert fit_circle(usual).threshold == score_at(20)
    # 2 % of 60 rows are one: the highest but one decides.
    unusual = circle(88, *range(10, 69))
    assert fit_circle(usual, unusual_ND=unusual).threshold == score_at(68)
    assert fit_circle(usual, unusual_ND=circle(5)).threshold == score_at(20)
    assert fit_circle(usual, unusual_ND=NOBODY).threshold == score_at(20)


@pytest.mark.parametrize("seed", range(10))
def test_no_task_has_more_refused_than_the_share(seed: int) -> None:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(3, 6))
    exemplars, validation = (
        [(c + random.normal(size=(int(random.integers(1, 900)), 6))).astype(np.float32)
         for c in centres] for _ in range(2)
    )
    strangers = random.normal(size=(30, 6)).astype(np.float32) * 3
    refused = REFUSED if seed % 2 else 0.1
    fitted = fit_reference(dict(zip("abc", exemplars, strict=True)), strangers, validation,
                           refused=refused)
    assert fitted is not None
    scores = [stranger_scores(rows, fitted) for rows in validation]
    assert max((s > fitted.threshold).mean() for s in scores) <= refused
    # The threshold is no higher than one task needs: with its row, more would be refused.
    assert any((s >= fitted.threshold).sum() > refused * (len(s) - 1) for s in scores)
    assert any((s == fitted.threshold).any() for s in scores)


NOBODY = np.zeros((0, 2), dtype=np.float32)


@pytest.mark.parametrize(("strangers", "validation"), [
    (NOBODY, [circle(10)]),              # nothing to tell from
    (circle(90), [circle(10), NOBODY]),  # a task that the threshold cannot be safe for
])
def test_without_strangers_or_validation_there_is_no_reference(
    strangers: np.ndarray, validation: list
) -> None:
    assert fit_reference({"a": circle(0), "b": circle(180)}, strangers, validation) is None


def test_what_is_kept_is_exact_in_half_precision() -> None:
    random = np.random.default_rng(0)
    rows = [random.normal(size=(50, 8)).astype(np.float32) for _ in range(4)]
    fitted = fit_reference({"a": rows[0], "b": rows[1]}, rows[2], rows[3:])
    assert fitted is not None

    def halved(values: np.ndarray) -> np.ndarray:
        assert values.dtype == np.float32
        return values.astype(np.float16).astype(np.float32)

    saved = Reference(
        centre_D=halved(fitted.centre_D), strangers_XD=halved(fitted.strangers_XD),
        exemplars={k: halved(v) for k, v in fitted.exemplars.items()},
        threshold=float(repr(fitted.threshold)),
    )
    asked = random.normal(size=(200, 8)).astype(np.float32)
    assert np.array_equal(stranger_scores(asked, saved), stranger_scores(asked, fitted))
    # The row whose score is the threshold is not refused, after saving either.
    assert (stranger_scores(rows[3], saved) > saved.threshold).sum() == 0
    assert (stranger_scores(rows[3], saved) == saved.threshold).sum() == 1


# --- tasks that were added later --------------------------------------------------------------


def test_an_added_task_has_exemplars_and_a_threshold_of_its_own() -> None:
    base = reference(threshold=0.3)
    added = replace(base, exemplars={**base.exemplars, "new": vectors([0, -1])},
                    grown={"new": 0.9})
    rows = vectors([2, 0], [1, 2], [0, -3])
    before = stranger_scores(rows, base)
    assert np.array_equal(stranger_scores(rows, added), before)  # it counts for no other task
    scores, thresholds = refusal_scores(nearest_cosines(rows, added), added, ["old", "new", "new"])
    assert thresholds.tolist() == [0.3, 0.9, 0.9]
    assert scores[:2].tolist() == before[:2].tolist()  # the second is nearer to an old exemplar
    # The third is its exemplar: similarity 1, and to the strangers what it was.
    strange = nearest(normalise(rows[2:], base.centre_D), base.strangers_XD)
    assert scores[2] == strange[0] - 1.0
    found = refusal_scores(nearest_cosines(rows, base), base)
    assert [v.tolist() for v in found] == [before.tolist(), [0.3] * 3]
