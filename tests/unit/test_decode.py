"""Decoding, against brute force and arithmetic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from moe.decode import (
    MAX_ANSWER_TOKENS,
    ClassifierVotes,
    SpanChoice,
    best_span,
    log_softmax,
    log_sum_exp,
    mix_classes,
    out_of_scope_scores,
    span_text,
    spread,
)

INF = math.inf


def softmax(values: Any, axis: int = -1) -> Any:
    exps = np.exp(values)
    return exps / exps.sum(axis, keepdims=True)


def random_windows(seed: int, num_experts: int) -> list:
    """Three windows with masked logits, as a span expert gives them."""
    random = np.random.default_rng(seed)
    windows = []
    for first in (0, 4, 9):
        length = int(random.integers(6, 12))
        context = int(random.integers(2, 4))  # [CLS] and a question come before
        logits = [random.normal(size=(length, 2)) * 2 for _ in range(num_experts)]
        for values in logits:
            values[1:context] = values[length - 1] = -INF
        weights = random.dirichlet(np.ones(num_experts))
        windows.append((weights, logits, first - context))
    return windows


def brute_force(windows: list, max_tokens: int) -> tuple[tuple[int, int], float, float]:
    best, score, null = (-1, -1), 0.0, 1.0
    for weights, logits, offset in windows:
        starts = [softmax(z[:, 0]) for z in logits]
        ends = [softmax(z[:, 1]) for z in logits]

        def joint(i: int, j: int, w: Any = weights, s: Any = starts, e: Any = ends) -> float:
            return sum(w[k] * s[k][i] * e[k][j] for k in range(len(w)))

        null = min(null, joint(0, 0))
        for i in range(1, len(logits[0])):
            for j in range(i, min(i + max_tokens, len(logits[0]))):
                if joint(i, j) > score:
                    best, score = (i + offset, j + offset), joint(i, j)
    return best, score, null


@pytest.mark.parametrize("num_experts", [1, 2])
@pytest.mark.parametrize("max_tokens", [1, 2, 30])
def test_best_span_equals_brute_force(num_experts: int, max_tokens: int) -> None:
    for seed in range(10):
        windows = random_windows(seed, num_experts)
        expected, score, null = brute_force(windows, max_tokens)
        choice = best_span(windows, max_tokens)
        assert (choice.start, choice.end) == expected
        assert choice.score == pytest.approx(score)
        assert choice.null == pytest.approx(null)


def test_default_length_of_an_answer() -> None:
    logits = np.full((40, 2), -INF)
    logits[0] = logits[1, 0] = logits[-1, 1] = 0.0  # 39 tokens from first to last
    assert MAX_ANSWER_TOKENS == 30
    assert best_span([([1.0], [logits], 0)]).start == -1
    assert best_span([([1.0], [logits], 0)], 38).start == -1
    choice = best_span([([1.0], [logits], 0)], 39)
    assert (choice.start, choice.end, choice.score) == (1, 39, pytest.approx(0.25))


def test_spans_are_mixed_as_joint_probabilities() -> None:
    # Each expert is sure of one span; a product of mixed starts and ends would see four.
    first, second = np.full((5, 2), -INF), np.full((5, 2), -INF)
    first[1, 0] = first[2, 1] = 0.0
    second[3, 0] = second[4, 1] = 0.0
    choice = best_span([([0.4, 0.6], [first, second], 10)])
    assert (choice.start, choice.end, choice.score) == (13, 14, pytest.approx(0.6))


def test_null_is_the_smallest_over_the_windows() -> None:
    # p(start = 0) = p(end = 0) = 1/2 in the first window, 1/4 in the second.
    first = np.log([[1.0, 1.0], [1.0, 1.0]])
    second = np.log([[1.0, 1.0], [3.0, 3.0]])
    choice = best_span([([1.0], [first], -1), ([1.0], [second], 0)])
    assert choice.null == pytest.approx(1 / 16)
    assert (choice.start, choice.end, choice.score) == (1, 1, pytest.approx(9 / 16))


def test_a_window_without_context_has_no_span() -> None:
    logits = np.full((3, 2), -INF)
    logits[0] = 2.0
    choice = best_span([([1.0], [logits], 0)])
    assert (choice.start, choice.end, choice.score, choice.null) == (-1, -1, 0.0, 1.0)


def test_text_of_a_span() -> None:
    context, offsets = "An abbot led", [[0, 2], [3, 8], [9, 12]]
    for (start, end), text in (((1, 1), "abbot"), ((0, 2), "An abbot led"), ((-1, -1), "")):
        choice = SpanChoice(start=start, end=end, score=0.5, null=0.5)
        assert span_text(choice, context, offsets) == text


def test_float32_logits_are_decoded_in_double_precision() -> None:
    logits = np.array([[0, 0], [30, 30], [30.5, 30.5]], dtype=np.float32)
    choice = best_span([([1.0], [logits], 0)])
    p = 1 / (1 + math.exp(-0.5) + math.exp(-30.5))
    assert choice.score == pytest.approx(p * p, abs=1e-12)


def test_mix_classes_by_hand() -> None:
    votes = ClassifierVotes(
        row_P=np.array([1, 0, 1]), expert_P=np.array([0, 0, 1]),
        weight_P=np.array([0.25, 1.0, 0.75]),
        # The last column is out of scope and has no part in the mixture.
        logits_PC=np.log([[1.0, 3.0, 9.0], [2.0, 8.0, 1.0], [4.0, 1.0, 9.0]]),
    )
    # Row 0: 2/10, 8/10. Row 1: 1/4 * (1/4, 3/4) + 3/4 * (4/5, 1/5) = (53/80, 27/80).
    plain = mix_classes(votes, np.ones(3), np.full(3, np.inf), 2, 2)
    np.testing.assert_allclose(plain, [[0.2, 0.8], [53 / 80, 27 / 80]])
    # Temperature 1/2 squares the odds: row 1's first pair becomes (1/10, 9/10).
    sharp = mix_classes(votes, np.array([0.5, 1.0, 1.0]), np.full(3, np.inf), 2, 2)
    np.testing.assert_allclose(sharp[1], [0.025 + 0.6, 0.225 + 0.15])
    # The first expert saturates at log 9; its margin in row 1 is log 3, half of that.
    wide = mix_classes(votes, np.ones(3), np.array([np.log(9), np.inf, np.inf]), 2, 2)
    odds = 9 ** math.atanh(0.5)  # the margin log 9 * 1/2 becomes log 9 * atanh(1/2)
    first = np.array([1, odds]) / (1 + odds)
    np.testing.assert_allclose(wide[1], 0.25 * first + 0.75 * np.array([0.8, 0.2]))


@pytest.mark.parametrize("rows", [
    [[0.0, 3.0, 1.0], [2.0, 2.0, -1.0], [-4.0, -5.0, -9.0]],  # margins 2, 0 and 1
    [[5.0, 1.0], [0.0, 0.0], [-0.5, 0.5]],
])
def test_spread_widens_margins_and_keeps_the_order(rows: list[list[float]]) -> None:
    logits = np.array(rows)
    wide = spread(logits, 4.1)
    assert (wide.argsort(1) == logits.argsort(1)).all()
    margins = [np.diff(np.sort(each, axis=1))[:, -1] for each in (logits, wide)]
    np.testing.assert_allclose(margins[1], 4.1 * np.arctanh(margins[0] / 4.1), rtol=1e-5)
    np.testing.assert_allclose(spread(logits, np.inf), logits)
    assert np.isfinite(spread(logits * 100, 4.1)).all()  # beyond what was seen


def test_out_of_scope_scores_by_hand() -> None:
    votes = ClassifierVotes(
        row_P=np.array([1, 0, 1]), expert_P=np.array([0, 0, 1]),
        weight_P=np.array([0.25, 1.0, 0.75]),
        # The last column is out of scope: half of it, less the energy of the others.
        logits_PC=np.log([[1.0, 3.0, 4.0], [2.0, 8.0, 25.0], [4.0, 1.0, 9.0]]),
    )
    # Row 0: log 5 - log(2 + 8) = -log 2. Row 1: log 2 - log(1 + 3) = -log 2 and
    # log 3 - log(4 + 1), weighted.
    expected = [-math.log(2), -0.25 * math.log(2) + 0.75 * math.log(3 / 5)]
    np.testing.assert_allclose(out_of_scope_scores(votes, 2, 2), expected)


@pytest.mark.parametrize("axis", [0, 1])
def test_log_softmax_and_log_sum_exp_equal_torchs(axis: int) -> None:
    values = np.random.default_rng(0).normal(size=(4, 5)) * 300
    values[1, 2] = -INF
    expected = torch.from_numpy(values)
    np.testing.assert_allclose(log_softmax(values, axis), expected.log_softmax(axis).numpy())
    np.testing.assert_allclose(log_sum_exp(values), expected.logsumexp(-1).numpy())
