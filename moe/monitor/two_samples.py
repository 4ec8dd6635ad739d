"""Tests of whether two samples come from the same source; each returns a p-value.

Dimensions: N, M rows of the two samples; S strata; K categories; D width of an embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from moe.decode import Floats

PERMUTATIONS = 250


def same_shares(ours_K: Sequence[int], theirs_K: Sequence[int], known: bool = False) -> float:
    """Pearson's chi-square test over the categories that occur.

    Categories of which fewer than 5 are expected are put together, since its distribution would
    not hold.

    Args:
        ours_K, theirs_K: Counts.
        known: Whether the shares of theirs are exact; else both are samples.
    """
    table = np.array([ours_K, theirs_K], dtype=float)
    if known:  # so large a sample has no error of its own
        table[1] *= 1e9 / max(table[1].sum(), 1)
    share = table.sum(1).min() / max(table.sum(), 1)
    rare_K = table.sum(0) * share < 5
    table = np.concatenate([table[:, ~rare_K], table[:, rare_K].sum(1, keepdims=True)], axis=1)
    table = table[:, table.sum(0) > 0]
    if table.shape[1] < 2 or (table.sum(1) == 0).any():
        return 1.0
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    statistic = float(((table - expected) ** 2 / expected).sum())
    return _chi_square_tail(statistic, table.shape[1] - 1)


def _chi_square_tail(statistic: float, degrees: int) -> float:
    half = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def same_rate(ours: int, our_rows: int, theirs: int, their_rows: int) -> float:
    """Fisher's exact test of two rates, two-sided by doubling the smaller tail."""
    if not our_rows or not their_rows:
        return 1.0
    hits = ours + theirs
    low, high = max(0, hits - their_rows), min(hits, our_rows)
    counts = np.arange(low, high + 1)
    ways = [
        _log_pairs(our_rows, k) + _log_pairs(their_rows, hits - k) for k in range(low, high + 1)
    ]
    logs = np.array(ways)
    chance = np.exp(logs - logs.max())
    chance /= chance.sum()
    tails = chance[counts >= ours].sum(), chance[counts <= ours].sum()
    return float(min(1.0, 2 * min(tails)))


def _log_pairs(rows: int, hits: int) -> float:
    """log of the number of ways to choose."""
    return math.lgamma(rows + 1) - math.lgamma(hits + 1) - math.lgamma(rows - hits + 1)


def same_values(strata: Sequence[tuple[Floats, Floats]]) -> tuple[float, float]:
    """Wilcoxon's rank-sum test, summed over strata (van Elteren 1960); p and the common shift.

    Args:
        strata: (N,) and (M,) values of both samples in each stratum; NaN does not count.

    Returns:
        The two-sided p-value, and how often a value of ours is above one of theirs minus 0.5, in
        [-0.5, 0.5], over all strata.
    """
    total, variance, shift, rows = 0.0, 0.0, 0.0, 0
    for ours_N, theirs_M in strata:
        ours_N, theirs_M = ours_N[~np.isnan(ours_N)], theirs_M[~np.isnan(theirs_M)]
        n, m = len(ours_N), len(theirs_M)
        if min(n, m) < 10:  # too few for the normal approximation
            continue
        both = np.concatenate([ours_N, theirs_M])
        _, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
        rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # ties share their mean rank
        count = n + m
        ties = float((counts.astype(float) ** 3 - counts).sum()) / (count * (count - 1))
        weight = 1 / (count + 1)
        excess = float(rank[:n].sum()) - n * (count + 1) / 2
        total += weight * excess
        variance += weight**2 * n * m / 12 * (count + 1 - ties)
        shift += excess / m
        rows += n
    if variance == 0:
        return 1.0, 0.0
    return math.erfc(abs(total) / math.sqrt(2 * variance)), shift / rows


def same_vectors(
    ours_ND: NDArray[np.float32], theirs_MD: NDArray[np.float32], seed: int = 0
) -> tuple[float, float]:
    """Maximum mean discrepancy with a Gaussian kernel (Gretton et al. 2012); p and MMD squared.

    The width is the median distance. Permutations give the mean, variance and skewness of the
    statistic where nothing differs, and a gamma distribution of these its tail, which is smaller
    than 1 / permutations.
    """
    both = torch.from_numpy(np.concatenate([ours_ND, theirs_MD]).astype(np.float32))
    count, n = len(both), len(ours_ND)
    distance = torch.cdist(both, both) ** 2
    width = distance[distance > 0].median()
    kernel = torch.exp(-distance / width)
    kernel.fill_diagonal_(0.0)
    chance = np.random.default_rng(seed)
    ours = np.zeros((count, PERMUTATIONS + 1), dtype=np.float32)
    ours[:n, 0] = 1.0
    for column in range(1, PERMUTATIONS + 1):
        ours[chance.permutation(count)[:n], column] = 1.0
    found = _discrepancies(kernel, torch.from_numpy(ours), n, count - n)
    return _gamma_tail(found[1:], float(found[0])), float(found[0])


def _discrepancies(kernel: torch.Tensor, ours: torch.Tensor, n: int, m: int) -> Floats:
    """Unbiased MMD squared of each column's split (the kernel has no diagonal)."""
    mine = kernel @ ours
    inside = (ours * mine).sum(0)
    all_mine = mine.sum(0)
    across = all_mine - inside
    outside = kernel.sum() - inside - 2 * across
    value = inside / (n * (n - 1)) + outside / (m * (m - 1)) - 2 * across / (n * m)
    found: Floats = value.double().numpy()
    return found


def _gamma_tail(null: Floats, value: float) -> float:
    """P(X >= value) of a gamma distribution with the null's mean, variance and skewness."""
    mean, deviation = float(null.mean()), float(null.std())
    if deviation == 0:
        return 1.0
    skewness = float((((null - mean) / deviation) ** 3).mean())
    z = (value - mean) / deviation
    if skewness < 0.05:  # as good as normal
        return 0.5 * math.erfc(z / math.sqrt(2))
    shape = 4 / skewness**2
    at = shape + z * math.sqrt(shape)
    if at <= 0:
        return 1.0
    half = torch.tensor([shape, at], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
