"""Figures of the analysis; matplotlib is imported only when one is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's, told apart by colour-blind readers.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")


def _figure() -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.5), dpi=100, layout="constrained")
    return figure, figure.subplots()


def specialised(served_NF: NDArray[np.int64], tasks: Sequence[str]) -> Figure:
    """Share of the neurons of each layer that serve one task, stacked by task."""
    figure, axes = _figure()
    layers = np.arange(1, len(served_NF) + 1)
    below = np.zeros(len(layers))
    for number, task in enumerate(tasks):
        share = 100 * (served_NF == number).mean(1)
        axes.bar(layers, share, bottom=below, color=COLOURS[number % 8], label=task)
        below += share
    axes.set(xlabel="encoder layer", ylabel="neurons that serve one task (%)")
    axes.set_title(f"{(served_NF >= 0).mean():.0%} of the neurons serve one task", fontsize=12)
    axes.legend()
    return figure


def kept_scores(curves: Mapping[str, Mapping[float, float]], task: str) -> Figure:
    """Main metric of a task over the share of neurons that it keeps, by how they are chosen."""
    figure, axes = _figure()
    for number, (name, curve) in enumerate(curves.items()):
        shares = sorted(curve)
        values = [100 * curve[share] for share in shares]
        axes.plot([100 * s for s in shares], values, "o-", color=COLOURS[number], label=name)
    axes.set(xlabel="neurons kept in each layer (%)", ylabel="main metric (%)", ylim=(0, 100))
    axes.set_title(f"{task}: with a part of the encoder's neurons", fontsize=12)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend()
    return figure


def brick_rates(rate_TK: NDArray[np.float64], tasks: Sequence[str], layer: int) -> Figure:
    """How active each emergent brick of a layer is in each task, against its mean over tasks."""
    figure, axes = _figure()
    relative_TK = rate_TK / np.maximum(rate_TK.mean(0), 1e-9)
    order = np.argsort(relative_TK.argmax(0) * 10 - relative_TK.max(0))
    image = axes.imshow(relative_TK[:, order], aspect="auto", cmap="PuOr_r", vmin=0, vmax=2)
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set(xlabel="emergent brick, grouped by the task it serves most")
    axes.set_title(f"Layer {layer}: activation of bricks, 1 = as in the mean of tasks", fontsize=11)
    figure.colorbar(image, ax=axes)
    return figure


def similarity(cosine_RR: NDArray[np.float64], names: Sequence[str]) -> Figure:
    """Cosines between the gate's prototypes."""
    figure, axes = _figure()
    image = axes.imshow(cosine_RR, cmap="PuOr_r", vmin=-1, vmax=1)
    for row, column in np.ndindex(*cosine_RR.shape):
        axes.text(column, row, f"{cosine_RR[row, column]:.2f}", ha="center", va="center")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_title("Cosine between prototypes of the gate", fontsize=12)
    figure.colorbar(image, ax=axes)
    return figure


def words(found: Mapping[str, Any], task: str) -> Figure:
    """What leaving out a word of a text does to the gate's mass on its task."""
    figure, axes = _figure()
    names = [key.partition(":")[2] for key in found["without"]][:20]
    change = list(found["without"].values())[:20]
    colours = [COLOURS[0] if value < 0 else COLOURS[1] for value in change]
    axes.barh(range(len(change)), change, color=colours)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.axvline(0, color="#222222", linewidth=0.8)
    axes.set(xlabel=f"change of the mass on {task} without the word")
    axes.set_title(f"A doubtful row of {task}: mass {found['mass']:.2f}", fontsize=12)
    return figure
