"""Fitting a gate brick: an added expert's rows against what is remembered of all others.

Closed form, no training: a linear discriminant with shrunk covariance (Ledoit and Wolf 2004 choose
the shrinkage; here it is fixed). Trained discriminants of the same rows held on to forms that a few
hundred rows share and lost a quarter of the held-out ones (`docs/bricks.md`).

Dimensions: N rows, P width of what gate bricks read, X kept rows, M prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from moe.abstain import Vectors
from moe.gate_brick import GateBrick

MOVED = 0.001  # share of the remembered rows of each other task that an added expert may take
SHRINKAGE = 0.1
HELD_OUT = 5  # one in so many rows places the border and is not fitted on
LOWEST = -10.0  # nats, on the scale of the discriminant
MEDIAN = 20.0  # nats of a typical own row: such discriminants are overconfident by far
FEWEST = 2  # rows of a prototype
Wide = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class BrickFit:
    """How an added expert parts its rows from the others', on rows it was not fitted on.

    Attributes:
        moved: By what is remembered: the share of the rows that go to the added expert.
        kept: Share of the expert's own rows that go to it.
    """

    moved: dict[str, float]
    kept: float


@dataclass(frozen=True, kw_only=True)
class BrickData:
    """Rows to fit a brick on, (X, P) as they come from the encoder.

    Attributes:
        own_XP: The added expert's.
        classes_X: Their classes; all alike where the task has none.
        others: Remembered rows, by what they are of.
        limited: Those of `others` that must not move; the rest are held off, too, but do not
            place the border: the expert's own task, unusual requests, texts of no task.
    """

    own_XP: Vectors
    classes_X: NDArray[np.int64]
    others: Mapping[str, Vectors]
    limited: Sequence[str] = field(default_factory=tuple)

    def num_own(self) -> int:
        """Prototypes of the expert's rows: one for each class with rows enough."""
        return len(_own_groups(self.classes_X))


def _own_groups(classes_X: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
    masks = [classes_X == number for number in np.unique(classes_X)]
    large = [mask for mask in masks if mask.sum() >= FEWEST * HELD_OUT]
    return large or [np.ones_like(classes_X, dtype=bool)]


@torch.no_grad()
def fit_brick(brick: GateBrick, data: BrickData, seed: int = 0) -> BrickFit:
    """Fits a brick in place.

    The border is beyond the rows that must not move, all but `MOVED` of them: old tasks come first.
    Where these are far off it is half way from them to equal odds, `LOWEST` at the least: new forms
    of the own rows lie lower than those that are known.

    Args:
        brick: With a prototype for each own class and for each entry of `data.others`.
        data: The rows.
        seed: Of the split.
    """
    means = [rows_XP.mean(0, dtype=np.float64) for rows_XP in data.others.values()]
    brick.centre.copy_(torch.from_numpy(np.mean(means, axis=0)))
    generator = np.random.default_rng(seed)
    own, own_held = _split(data.own_XP, generator)
    groups = [_unit(brick, rows_XP) for rows_XP in _own_rows(data, own)]
    parts = {name: _split(rows_XP, generator) for name, rows_XP in data.others.items()}
    others = [_unit(brick, data.others[name][fitted]) for name, (fitted, _) in parts.items()]
    _set_discriminant(brick, groups, others)
    own_N = _odds(brick, data.own_XP[own_held])
    held = {name: _odds(brick, data.others[name][rest]) for name, (_, rest) in parts.items()}
    border = _border([odds for name, odds in held.items() if name in data.limited])
    scale = MEDIAN / max(float(np.median(own_N - border)), 1e-3)
    brick.scale.fill_(min(scale, 1.0))
    brick.offset.copy_(-brick.scale * border)
    moved = {name: float((odds_N > border).mean()) for name, odds_N in held.items()}
    return BrickFit(moved=moved, kept=float((own_N > border).mean()))


def _own_rows(data: BrickData, fitted: NDArray[np.int64]) -> list[Vectors]:
    """The rows to fit each prototype on; all rows of a class that the split left without any."""
    rows = []
    for mask_X in _own_groups(data.classes_X):
        chosen = fitted[mask_X[fitted]]
        rows.append(data.own_XP[chosen if len(chosen) else mask_X])
    return rows


def _split(
    rows_XP: Vectors, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to fit on, and one in `HELD_OUT` to place the border; very few rows serve both."""
    order = generator.permutation(len(rows_XP))
    held = order[: len(order) // HELD_OUT]
    return (order, order) if len(held) == 0 else (order[len(held) :], held)


def _unit(brick: GateBrick, rows_XP: Vectors) -> Wide:
    unit_XP: Wide = brick.unit(torch.from_numpy(rows_XP)).double().numpy()
    return unit_XP


def _odds(brick: GateBrick, rows_XP: Vectors) -> Vectors:
    """Log-odds (X,) as the brick gives them while its scale is 1 and its offset 0."""
    odds_X: Vectors = brick(torch.from_numpy(rows_XP)).numpy()
    return odds_X


def _set_discriminant(brick: GateBrick, own: Sequence[Wide], others: Sequence[Wide]) -> None:
    """Weights and biases of all prototypes: `w = S^-1 mu`, `b = log prior - mu w / 2`."""
    groups = [*own, *others]
    mean_MP = np.stack([rows_XP.mean(0) for rows_XP in groups])
    residual = np.concatenate([rows - mean for rows, mean in zip(groups, mean_MP, strict=True)])
    covariance_PP = residual.T @ residual / len(residual)
    size = max(float(np.trace(covariance_PP)) / len(covariance_PP), 1e-12)
    covariance_PP = (1 - SHRINKAGE) * covariance_PP + SHRINKAGE * size * np.eye(len(covariance_PP))
    weight_MP = np.linalg.solve(covariance_PP, mean_MP.T).T
    counts_M = np.array([len(rows_XP) for rows_XP in groups])
    bias_M = np.log(counts_M / counts_M.sum()) - 0.5 * (weight_MP * mean_MP).sum(1)
    for layer, part in ((brick.own, slice(0, len(own))), (brick.others, slice(len(own), None))):
        layer.weight.copy_(torch.from_numpy(weight_MP[part]))
        layer.bias.copy_(torch.from_numpy(bias_M[part]))


def _border(limited: Sequence[Vectors]) -> float:
    """Log-odds of the border."""
    if not limited:
        return 0.0
    # Linear between rows: of fewer than 1,000 rows no single one decides alone.
    highest = max(float(np.quantile(odds_N, 1 - MOVED)) for odds_N in limited)
    return highest if highest > 0 else max(highest / 2, LOWEST)
