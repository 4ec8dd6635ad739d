"""Figures from arrays, for TensorBoard; matplotlib is imported only when one is drawn.

Blue is right, vermilion is wrong (Okabe and Ito's colours, told apart by colour-blind readers).
600 x 450 pixels, the size at which TensorBoard shows an image.

Dimensions: N rows, T rows of a routing matrix, E experts, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moe.metrics import calibration_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RIGHT, _WRONG, _INK, _GREY = "#0072B2", "#D55E00", "#222222", "#BBBBBB"
_MOST_NUMBERED = 30  # more classes than that have no room for numbers or names
_NUM_WORST = 6


def _figure() -> Figure:
    from matplotlib.figure import Figure

    # No pyplot: it would keep every figure, and ask the environment for a display.
    return Figure(figsize=(6.0, 4.5), dpi=100, layout="constrained")


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """The drawn figure (height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _shaded(share: NDArray[np.float64], colour: NDArray[np.str_]) -> NDArray[np.float64]:
    """(rows, columns, 3): white where the share is 0, the cell's own colour at 1."""
    from matplotlib.colors import to_rgba_array

    full = to_rgba_array(colour.ravel())[:, :3].reshape(*share.shape, 3)
    # The root lifts small shares off white: one error in twenty must be seen.
    strength: NDArray[np.float64] = np.sqrt(np.clip(share, 0.0, 1.0))[..., None]
    return 1.0 - strength * (1.0 - full)


def _cells(axes: Any, share: NDArray[np.float64], colour: NDArray[np.str_], size: float) -> None:
    """Shaded cells with their percentages; an empty cell has none."""
    axes.imshow(_shaded(share, colour), aspect="auto", interpolation="nearest")
    for row, column in zip(*np.nonzero(share > 0), strict=True):
        value = share[row, column]
        label = "<1" if value < 0.005 else f"{100 * value:.0f}"
        ink = "white" if value > 0.4 and colour[row, column] != _GREY else _INK
        axes.text(column, row, label, ha="center", va="center", fontsize=size, color=ink)
    axes.set_xticks(np.arange(share.shape[1] + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(share.shape[0] + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.6)
    axes.tick_params(which="both", length=0)


def _name_cells(axes: Any, rows: Sequence[str], columns: Sequence[str], size: float) -> None:
    turned = 0 if len(columns) <= 4 else 30 if len(columns) <= 10 else 90
    side = "right" if turned == 30 else "center"
    axes.set_xticks(range(len(columns)), columns, fontsize=size, rotation=turned, ha=side)
    axes.set_yticks(range(len(rows)), rows, fontsize=size)


def routing_matrix(
    share_TE: NDArray[np.float64], task_names: Sequence[str], expert_names: Sequence[str]
) -> Figure:
    """Where the learned gate sends the rows of each task, and which experts it never uses.

    Args:
        share_TE: Of each group of rows, the share of its (row, expert) pairs at each expert.
        task_names: (T,) the task of each group; a name that is no task's is a group that belongs
            nowhere, drawn in grey.
        expert_names: (E,) `task-0`, `task-1`, ...
    """
    owner_E = np.array([name.rpartition("-")[0] for name in expert_names])
    own_TE = np.array(task_names)[:, None] == owner_E
    known_T = own_TE.any(1)
    colour_TE = np.where(own_TE, _RIGHT, np.where(known_T[:, None], _WRONG, _GREY))
    figure, few = _figure(), len(expert_names) <= 10
    axes = figure.subplots()
    _cells(axes, share_TE, colour_TE, size=13 if few else 8)
    _name_cells(axes, task_names, expert_names, size=11 if few else 8)
    astray = (share_TE * ~own_TE).sum(1)[known_T].max(initial=0.0)
    used_E = (share_TE * own_TE).max(0) >= 0.005
    unused = [name for name, used in zip(expert_names, used_E, strict=True) if not used]
    note = f"\nunused experts: {', '.join(unused)}" if unused else ""
    title = f"Where the gate sends each task (%): at most {astray:.1%} astray{note}"
    axes.set_title(title, fontsize=12)
    axes.set(xlabel="chosen expert", ylabel="the rows' own task")
    return figure


def confusion_shares(
    label_N: NDArray[np.int64], predicted_N: NDArray[np.int64], num_classes: int
) -> NDArray[np.float64]:
    """(C, C) share of each class's rows (row) that got each answer (column); 0 without rows."""
    counts_CC = np.zeros((num_classes, num_classes))
    np.add.at(counts_CC, (label_N, predicted_N), 1.0)
    return counts_CC / np.maximum(counts_CC.sum(1, keepdims=True), 1.0)


def _worst(share_CC: NDArray[np.float64], names: Sequence[str]) -> str:
    """The largest confusions, one in two lines."""
    wrong_CC = share_CC * ~np.eye(len(share_CC), dtype=bool)
    lines = []
    for flat in np.argsort(-wrong_CC, axis=None, kind="stable")[:_NUM_WORST]:
        row, column = divmod(int(flat), len(share_CC))
        if (share := wrong_CC[row, column]) > 0:
            lines.append(f"{share:.0%} {_cut(names[row])}\n  as {_cut(names[column])}")
    return "Worst confusions\n\n" + "\n".join(lines or ["none"])


def _cut(name: str, length: int = 20) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def confusion_matrix(
    label_N: NDArray[np.int64], predicted_N: NDArray[np.int64], names: Sequence[str]
) -> Figure:
    """What rows of each class were taken for; each row of the matrix sums to 100 %.

    Up to 30 classes are named and numbered. With more than 10 the largest confusions are listed
    beside the matrix, and with more than 30 each confusion is a dot, its area the share.

    Args:
        label_N, predicted_N: Expected and answered class of each row.
        names: (C,) of the classes.
    """
    count = len(names)
    share_CC = confusion_shares(label_N, predicted_N, count)
    diagonal_CC = np.eye(count, dtype=bool)
    colour_CC = np.where(diagonal_CC, _RIGHT, _WRONG)
    figure = _figure()
    if count > 10:
        axes, side = figure.subplots(1, 2, width_ratios=[3, 1])
        side.axis("off")
        side.text(0, 1, _worst(share_CC, names), va="top", fontsize=8, color=_WRONG)
    else:
        axes = figure.subplots()
    if count <= _MOST_NUMBERED:
        size = 14 if count <= 4 else 9 if count <= 10 else 5.5
        _cells(axes, share_CC, colour_CC, size)
        short = [_cut(name) for name in names]
        _name_cells(axes, short, short, min(size, 11))
    else:
        axes.imshow(_shaded(share_CC * diagonal_CC, colour_CC), aspect="auto")
        row, column = np.nonzero(share_CC * ~diagonal_CC)
        axes.scatter(column, row, s=60 * share_CC[row, column], color=_WRONG, linewidths=0)
        axes.plot([], [], "s", color=_RIGHT, label="right")
        axes.plot([], [], "o", color=_WRONG, label="wrong")
        axes.legend(loc="upper right", fontsize=8)
    right = float((label_N == predicted_N).mean()) if len(label_N) else 0.0
    title = f"{right:.1%} of {len(label_N)} rows right (% of each expected class)"
    figure.suptitle(title, fontsize=12)
    axes.set(xlabel="answered class", ylabel="expected class")
    return figure


def reliability_diagram(
    confidence_N: NDArray[np.float64], correct_N: NDArray[np.bool_], bins: int = 15
) -> Figure:
    """Does a confidence of 80 % come true in 80 % of the rows? Bars should end at the diagonal.

    Args:
        confidence_N: Probability of the given answer, in [0, 1].
        correct_N: Whether it was right.
        bins: Equal-width bins over [0, 1], of the expected calibration error too.
    """
    figure = _figure()
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    edges = np.linspace(0.0, 1.0, bins + 1)
    place_N = np.clip(np.digitize(confidence_N, edges) - 1, 0, bins - 1)
    rows = np.bincount(place_N, minlength=bins)
    filled = np.flatnonzero(rows)
    accuracy = np.bincount(place_N, weights=correct_N, minlength=bins)[filled] / rows[filled]
    mean = np.bincount(place_N, weights=confidence_N, minlength=bins)[filled] / rows[filled]
    middle, width = (edges[:-1] + edges[1:]) / 2, 0.92 / bins
    colours = np.where(rows[filled] < 0.01 * len(confidence_N), "#9ecae1", _RIGHT)
    axes.bar(middle[filled], accuracy, width, color=colours)
    axes.bar([0], [0], color=_RIGHT, label="share right (pale: few rows)")
    axes.plot([0, 1], [0, 1], "--", color=_GREY, label="perfect")
    axes.vlines(middle[filled], accuracy, mean, color=_WRONG, linewidth=2.5, label="error")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share right")
    error = calibration_error(confidence_N, correct_N, bins)
    lean = float(np.mean(confidence_N) - np.mean(correct_N)) if len(confidence_N) else 0.0
    figure.suptitle(f"ECE {error:.3f}, confidence - accuracy = {lean:+.3f}", fontsize=12)
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    counts.bar(middle, rows, width, color=_GREY)
    counts.set(xlabel="confidence", ylabel="rows")
    return figure


def out_of_scope_tradeoff(
    score_N: NDArray[np.float64],
    inside_N: NDArray[np.bool_],
    right_N: NDArray[np.bool_],
    rejected_N: NDArray[np.bool_],
) -> Figure:
    """What refusing more costs: in-scope accuracy against recall of out-of-scope rows.

    Args:
        score_N: Larger is further out of scope.
        inside_N: The rows that belong to a class, some of N but not all.
        right_N: Whether the class is right.
        rejected_N: What the fitted threshold refuses: the marked point.
    """
    figure = _figure()
    axes = figure.subplots()
    order_N = np.argsort(-score_N, kind="stable")  # the first rows are refused first
    recall_N = np.cumsum(~inside_N[order_N]) / (~inside_N).sum()
    kept_right_N = right_N & inside_N
    accuracy_N = (kept_right_N.sum() - np.cumsum(kept_right_N[order_N])) / inside_N.sum()
    axes.plot(100 * recall_N, 100 * accuracy_N, color=_RIGHT)
    recall = 100 * float(rejected_N[~inside_N].mean())
    accuracy = 100 * float((kept_right_N & ~rejected_N).sum() / inside_N.sum())
    axes.plot([recall], [accuracy], "o", color=_WRONG, label="fitted threshold")
    axes.set_title(f"{accuracy:.1f} % right at {recall:.0f} % out-of-scope recall", fontsize=12)
    axes.set(
        xlabel="out-of-scope rows refused (%)",
        ylabel="in-scope rows answered and right (%)",
        xlim=(0, 100),
        ylim=(max(accuracy - 15, 0), min(100 * accuracy_N[0] + 2, 100)),
    )
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(loc="lower left")
    return figure
