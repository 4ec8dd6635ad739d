"""Intervals for the difference of two models that were measured on the same rows.

Dimensions: N rows, D draws of N rows with replacement.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Statistic = Callable[[NDArray[Any]], NDArray[Any]]  # of D draws of rows (D, N, ...), one each (D,)

MIN_OUTSIDE = 10  # draws beyond each end of an interval, lest one draw decide it
AT_ONCE = 4_000_000  # numbers


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


def mean(rows_DN: NDArray[Any]) -> NDArray[Any]:
    """The mean of the rows of each draw (D,)."""
    means_D: NDArray[Any] = rows_DN.mean(1)
    return means_D


def difference(ours_D: NDArray[Any], theirs_D: NDArray[Any]) -> NDArray[Any]:
    """Ours minus theirs."""
    return ours_D - theirs_D


def ratio(ours_D: NDArray[Any], theirs_D: NDArray[Any]) -> NDArray[Any]:
    """Ours over theirs."""
    return ours_D / theirs_D


def paired_interval(
    ours_N: NDArray[Any],
    theirs_N: NDArray[Any],
    *,
    statistic: Statistic = mean,
    compare: Callable[[NDArray[Any], NDArray[Any]], NDArray[Any]] = difference,
    confidence: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Interval:
    """A comparison of a statistic of both sides, and its two-sided interval.

    Rows are drawn with replacement, the same ones for both sides. A high confidence takes more
    draws than `draws`: ten must lie beyond each end.

    Args:
        ours_N, theirs_N: (N, ...) the same rows of both sides.
        statistic: Of the drawn rows of one side.
        compare: Of the statistics of both sides.
        confidence: Of the interval, in (0, 1).
        draws: Resamples, at least.
        seed: Of the draws.
    """
    chance, count = np.random.default_rng(seed), len(ours_N)
    outside = (1 - confidence) / 2
    remaining = max(draws, math.ceil(MIN_OUTSIDE / outside))
    found = []
    while remaining > 0:
        drawn_DN = chance.integers(count, size=(min(remaining, 1 + AT_ONCE // ours_N.size), count))
        found.append(compare(statistic(ours_N[drawn_DN]), statistic(theirs_N[drawn_DN])))
        remaining -= len(drawn_DN)
    low, high = np.quantile(np.concatenate(found), [outside, 1 - outside])
    value = compare(statistic(ours_N[None]), statistic(theirs_N[None]))[0]
    return Interval(value=float(value), low=float(low), high=float(high))
