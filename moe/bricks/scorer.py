"""Fitting a gate brick: an added expert's rows against what is remembered of all others.

Closed form, no training: a linear discriminant with shrunk covariance (Ledoit and Wolf 2004 choose
the shrinkage; here it is fixed). Trained discriminants of the same rows held on to forms that a few
hundred rows share and lost a quarter of the held-out ones (`docs/bricks.md`).

Dimensions: N rows, P width of what gate bricks read, X kept rows, M prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from moe.abstain import Vectors
from moe.gate_brick import GateBrick

MOVED = 0.001  # share of the remembered rows of each other task that an added expert may take
SHRINKAGE = 0.1
FOLDS = 5  # each places its share of the border without being fitted on
LOWEST = -6.0  # nats, on the scale of the discriminant
TOWARDS = 2 / 3  # of the way from equal odds to the nearest old rows, where these are far off
MEDIAN = 20.0  # nats of a typical own row: such discriminants are overconfident by far
FEWEST = 2  # rows of a prototype
FORMS = 16  # most prototypes of what is remembered under one name
FORM_ROWS = 40  # remembered rows to one of them
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
    """Rows to fit a brick on, (X, P) means of the first layers side by side.

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

    @cached_property
    def forms(self) -> dict[str, NDArray[np.int64]]:
        """By name in `others`, which of its prototypes each row belongs to, from 0."""
        return {name: similar_forms(rows_XP) for name, rows_XP in self.others.items()}

    def num_own(self) -> int:
        """Prototypes of the expert's rows: one for each class with rows enough."""
        return len(_own_groups(self.classes_X))

    def num_others(self) -> int:
        """Prototypes of the remembered rows."""
        return sum(int(form_X.max()) + 1 for form_X in self.forms.values())


def _own_groups(classes_X: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
    masks = [classes_X == number for number in np.unique(classes_X)]
    large = [mask for mask in masks if mask.sum() >= FEWEST * FOLDS]
    return large or [np.ones_like(classes_X, dtype=bool)]


def similar_forms(rows_XP: Vectors, seed: int = 0) -> NDArray[np.int64]:
    """Groups of rows that point the same way (spherical k-means), numbered from 0; (X,).

    A task has many forms, and one prototype for all of them lies between them: with one for each,
    fewer of its rows are taken for an added expert's (`docs/bricks.md`).
    """
    unit_XP = rows_XP / np.maximum(np.linalg.norm(rows_XP, axis=1, keepdims=True), 1e-9)
    count = max(1, min(FORMS, len(rows_XP) // FORM_ROWS))
    chosen = np.random.default_rng(seed).choice(len(rows_XP), count, replace=False)
    form_X, centre_MP = np.full(len(rows_XP), -1), unit_XP[chosen]
    for _ in range(50):
        nearest_X = (unit_XP @ centre_MP.T).argmax(1)
        if (nearest_X == form_X).all():
            break
        # What too few rows are nearest to ends, and they go elsewhere.
        sizes_M = np.bincount(nearest_X)
        large = np.flatnonzero(sizes_M >= min(FEWEST * FOLDS, sizes_M.max()))
        centre_MP = np.stack([unit_XP[nearest_X == number].mean(0) for number in large])
        centre_MP /= np.maximum(np.linalg.norm(centre_MP, axis=1, keepdims=True), 1e-9)
        form_X = nearest_X
    return np.unique(form_X, return_inverse=True)[1]


@torch.no_grad()
def fit_brick(brick: GateBrick, data: BrickData, seed: int = 0) -> BrickFit:
    """Fits a brick in place.

    The border is beyond the rows that must not move, all but `MOVED` of them: old tasks come first.
    Where these are far off it is two thirds of the way to them, from equal odds, `LOWEST` at the
    least: new forms of the own rows lie lower than those that are known.

    Args:
        brick: With a prototype for each own class and each form of `data.others`.
        data: The rows.
        seed: Of the folds.
    """
    means = [rows_XP.mean(0, dtype=np.float64) for rows_XP in data.others.values()]
    brick.centre.copy_(torch.from_numpy(np.mean(means, axis=0)))
    own_X, held = _left_out_odds(brick, data, np.random.default_rng(seed))
    _fit_without(brick, data, None)
    border = _border([odds for name, odds in held.items() if name in data.limited])
    scale = MEDIAN / max(float(np.median(own_X - border)), 1e-3)
    brick.scale.fill_(min(scale, 1.0))
    brick.offset.copy_(-brick.scale * border)
    moved = {name: float((odds_X > border).mean()) for name, odds_X in held.items()}
    return BrickFit(moved=moved, kept=float((own_X > border).mean()))


@dataclass(frozen=True, kw_only=True)
class _LeftOut:
    """Which rows a discriminant is fitted without, (X,) bool each."""

    own_X: NDArray[np.bool_]
    others: Mapping[str, NDArray[np.bool_]]


def _left_out_odds(
    brick: GateBrick, data: BrickData, generator: np.random.Generator
) -> tuple[Wide, dict[str, Wide]]:
    """Log-odds of every row, own and others', by a discriminant that was fitted without it.

    All rows place the border so: of a fifth of 2,000 the quantile would be the one highest.
    """
    own_fold_X = _folds(len(data.own_XP), generator)
    folds = {name: _folds(len(rows_XP), generator) for name, rows_XP in data.others.items()}
    own_X = np.empty(len(own_fold_X))
    held = {name: np.empty(len(fold_X)) for name, fold_X in folds.items()}
    for number in range(FOLDS):
        others = {name: fold_X == number for name, fold_X in folds.items()}
        without = _LeftOut(own_X=own_fold_X == number, others=others)
        _fit_without(brick, data, without)
        own_X[without.own_X] = _odds(brick, data.own_XP[without.own_X])
        for name, mask_X in others.items():
            held[name][mask_X] = _odds(brick, data.others[name][mask_X])
    return own_X, held


def _folds(count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """A number in [0, FOLDS) for each of so many rows."""
    fold_X: NDArray[np.int64] = generator.permutation(count) % FOLDS
    return fold_X


def _fit_without(brick: GateBrick, data: BrickData, without: _LeftOut | None) -> None:
    """Sets the discriminant of all rows, or of those that are not left out."""

    def rest(rows_XP: Vectors, mask_X: NDArray[np.bool_] | None) -> Wide:
        # Very few rows may be left out all together: they are fitted on, then.
        kept = rows_XP if mask_X is None or mask_X.all() else rows_XP[~mask_X]
        return _unit(brick, kept)

    masks = _own_groups(data.classes_X)
    own = [rest(data.own_XP[m], None if without is None else without.own_X[m]) for m in masks]
    others = [
        rest(rows_XP[mask], None if without is None else without.others[name][mask])
        for name, rows_XP in data.others.items()
        for mask in (data.forms[name] == form for form in range(data.forms[name].max() + 1))
    ]
    _set_discriminant(brick, own, others)


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


def _border(limited: Sequence[Wide]) -> float:
    """Log-odds of the border."""
    if not limited:
        return 0.0
    # Linear between rows: of fewer than 1,000 rows no single one decides alone.
    highest = max(float(np.quantile(odds_N, 1 - MOVED)) for odds_N in limited)
    return highest if highest > 0 else max(TOWARDS * highest, LOWEST)
