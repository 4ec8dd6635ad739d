"""Pictures of watched traffic, with matplotlib (extra `[plots]`)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe.monitor.drift import WEIGHTS, Window
from moe.types import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_GOOD, _BAD, _INK, _GREY = "#0072B2", "#D55E00", "#222222", "#BBBBBB"


def _figure() -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "pictures need matplotlib, which is not installed: pip install -e '.[plots]'"
        ) from error
    return Figure(figsize=(8.0, 3.2), dpi=100, layout="constrained")


def task_shares(windows: Sequence[Window], expected: dict[str, float]) -> Figure:
    """The share of each task in every window, dashed that of the reference."""
    figure = _figure()
    axes = figure.add_subplot()
    at = [window.first + window.rows for window in windows]
    colours = [f"C{number}" for number in range(len(expected))]
    for colour, (task, share) in zip(colours, expected.items(), strict=True):
        shares = [100 * window.shares[task] for window in windows]
        axes.plot(at, shares, marker="o", markersize=3, color=colour, label=task)
        axes.axhline(100 * share, color=colour, linestyle="--", linewidth=0.8)
    axes.set(ylabel="% of the requests", xlabel="requests", ylim=(0, None))
    axes.legend(loc="upper left", fontsize=8)
    return figure


def evidence(windows: Sequence[Window]) -> Figure:
    """How far every signal of every window is from its limit; above 1 it alerts."""
    import numpy as np

    figure = _figure()
    axes = figure.add_subplot()
    found = [[_strength(signal) for signal in window.signals] for window in windows]
    strength = np.array(found).T
    axes.imshow(strength, aspect="auto", cmap="Reds", vmin=0, vmax=1.5)
    for row, column in zip(*np.nonzero(strength >= 1), strict=True):
        axes.text(column, row, "!", ha="center", va="center", color="white", fontweight="bold")
    names = [signal.name for signal in windows[0].signals]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    step = max(1, len(windows) // 10)
    ticks = range(0, len(windows), step)
    axes.set_xticks(ticks, [str(windows[i].first + windows[i].rows) for i in ticks], fontsize=8)
    axes.set_xlabel("requests")
    return figure


def signal_values(windows: Sequence[Window], name: str) -> Figure:
    """The value of one signal in every window; windows in which it alerts are marked."""
    assert name in WEIGHTS, name
    figure = _figure()
    axes = figure.add_subplot()
    signals = [next(s for s in window.signals if s.name == name) for window in windows]
    at = [window.first + window.rows for window in windows]
    axes.plot(at, [s.value for s in signals], color=_GREY, linewidth=1)
    colours = [_BAD if s.alerts else _GOOD for s in signals]
    axes.scatter(at, [s.value for s in signals], color=colours, s=18, zorder=3)
    axes.set_title(name, fontsize=10, color=_INK, loc="left")
    axes.set_xlabel("requests")
    return figure


def _strength(signal: Any) -> float:
    """log p over the log of its limit."""
    import math

    return math.log(max(signal.p, 1e-300)) / math.log(signal.level)


def write_tensorboard(windows: Sequence[Window], expected: dict[str, float], folder: Path) -> None:
    """Signals as curves over the number of requests, and the pictures, as TensorBoard events."""
    from torch.utils.tensorboard import SummaryWriter

    from moe.plots import pixels

    with SummaryWriter(str(folder)) as writer:
        for window in windows:
            step = window.first + window.rows
            for task, share in window.shares.items():
                writer.add_scalar(f"drift_share/{task}", share, step)
            for signal in window.signals:
                tag = signal.name.replace(" ", "_")
                writer.add_scalar(f"drift_value/{tag}", signal.value, step)
                writer.add_scalar(f"drift_evidence/{tag}", _strength(signal), step)
        step = windows[-1].first + windows[-1].rows
        drawn = {"task_shares": task_shares(windows, expected), "evidence": evidence(windows)}
        for name, figure in drawn.items():
            writer.add_image(f"drift/{name}", pixels(figure), step, dataformats="HWC")


def time_text(microseconds: int) -> str:
    """A time in UTC, to the second."""
    moment = datetime.fromtimestamp(microseconds / 1e6, UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")
