"""Intervals for the difference of two models that were measured on the same rows.

Dimensions: N rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[Any]], float]

MIN_OUTSIDE = 10  # draws beyond each end of an interval, lest one draw decide it
AT_ONCE = 1_000  # draws


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

    Rows are drawn with replacement, the same ones for both sides. A high confidence takes more
    draws than `draws`: ten must lie beyond each end.

    Args:
        ours_N, theirs_N: (N, ...) the same rows of both sides.
        statistic: Of drawn rows of one side.
        compare: Of the statistics of both sides.
        confidence: Of the interval, in (0, 1).
        draws: Resamples, at least.
        seed: Of the draws.
    """
    chance, count = np.random.default_rng(seed), len(ours_N)
    outside = (1 - confidence) / 2
    left = max(draws, math.ceil(MIN_OUTSIDE / outside))
    found: list[float] = []
    while left > 0:
        drawn_DN = chance.integers(count, size=(min(left, AT_ONCE), count))
        ours_D, theirs_D = (_each(rows_N, drawn_DN, statistic) for rows_N in (ours_N, theirs_N))
        found += map(compare, ours_D, theirs_D)
        left -= len(drawn_DN)
    low, high = np.quantile(found, [outside, 1 - outside])
    value = compare(statistic(ours_N), statistic(theirs_N))
    return Interval(value=value, low=float(low), high=float(high))


def _each(rows_N: NDArray[Any], drawn_DN: NDArray[np.int64], statistic: Statistic) -> list[float]:
    if statistic is mean:  # the usual one, of all draws at once
        return rows_N[drawn_DN].mean(1).tolist()
    return [statistic(rows_N[drawn_N]) for drawn_N in drawn_DN]
