"""Intervals for the difference of two models that were measured on the same rows.

Dimensions: N rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[Any]], float]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A comparison of two sides, with its interval.

    Attributes:
        value: On all rows.
        low, high: Of Efron's percentile interval.
    """

    value: float
    low: float
    high: float


def mean(rows_N: NDArray[Any]) -> float:
    """The mean of the rows."""
    return float(rows_N.mean())


def difference(ours: float, theirs: float) -> float:
    """Ours minus theirs."""
    return ours - theirs


def ratio(ours: float, theirs: float) -> float:
    """Ours over theirs."""
    return ours / theirs


def paired_interval(
    ours_N: NDArray[Any],
    theirs_N: NDArray[Any],
    *,
    statistic: Statistic = mean,
    compare: Callable[[float, float], float] = difference,
    confidence: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Interval:
    """A comparison of a statistic of both sides, and its two-sided interval.

    Rows are drawn with replacement, the same ones for both sides.

    Args:
        ours_N, theirs_N: (N, ...) the same rows of both sides.
        statistic: Of drawn rows of one side.
        compare: Of the statistics of both sides.
        confidence: Of the interval, in (0, 1).
        draws: Resamples.
        seed: Of the draws.
    """
    chance, count = np.random.default_rng(seed), len(ours_N)
    found = []
    for _ in range(draws):
        drawn = chance.integers(count, size=count)
        found.append(compare(statistic(ours_N[drawn]), statistic(theirs_N[drawn])))
    outside = (1 - confidence) / 2
    low, high = np.quantile(found, [outside, 1 - outside])
    value = compare(statistic(ours_N), statistic(theirs_N))
    return Interval(value=value, low=float(low), high=float(high))
