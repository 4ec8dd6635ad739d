"""Whether traffic is still what a model was validated on, window by window.

Every window is compared with a reference in several ways. A window alerts if one of them would
happen by chance with a probability below its share of `alpha / horizon`: over `horizon` windows of
unchanged traffic the chance of any alert is at most `alpha` (Bonferroni, over windows and tests).

Dimensions: N requests of a window, T tasks, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moe.model_config import check_range
from moe.monitor.comparisons import comparisons
from moe.monitor.reading import Traffic
from moe.profile import Profile
from moe.types import InputError, TaskSpec

# How the allowed chance of a false alert is shared out, by signal; the sum is 1.
WEIGHTS: Mapping[str, float] = {
    "task share": 0.35,
    "expert load": 0.05,
    "abstained": 0.1,
    "out of scope": 0.05,
    "no answer": 0.05,
    "confidence": 0.1,
    "strangeness": 0.1,
    "spelling": 0.1,
    "embedding": 0.1,
}


@dataclass(frozen=True, kw_only=True)
class DriftConfig:
    """How traffic is watched.

    Attributes:
        window: Requests of a window; a rest that is shorter waits for more.
        alpha: Chance of any alert over `horizon` windows of unchanged traffic, in (0, 0.5].
        horizon: Windows over which `alpha` is shared.
        known_mix: Whether the reference's shares of the tasks are meant so, as those of validation
            rows are, and are not the shares of a sample of traffic.
    """

    window: int = 500
    alpha: float = 0.01
    horizon: int = 20
    known_mix: bool = True

    def __post_init__(self) -> None:
        check_range("monitor", self, "window", 100)
        check_range("monitor", self, "horizon", 1)
        check_range("monitor", self, "alpha", 1e-9, 0.5)

    def level(self, signal: str) -> float:
        """The p-value below which a signal alerts in one window."""
        return self.alpha / self.horizon * WEIGHTS[signal]


@dataclass(frozen=True, kw_only=True)
class Signal:
    """One comparison of a window.

    Attributes:
        name: Of `WEIGHTS`.
        p: Probability of a difference as large if nothing had changed.
        level: It alerts below this.
        value: What is drawn: a share, a shift, or a discrepancy.
        reason: What changed, in words.
    """

    name: str
    p: float
    level: float
    value: float
    reason: str

    @property
    def alerts(self) -> bool:
        """Whether the difference is too large for chance."""
        return self.p < self.level


@dataclass(frozen=True, kw_only=True)
class Window:
    """Some requests in a row.

    Attributes:
        first: Number of its first request, from 0.
        rows: Its requests.
        start, end: Times of its first and last one, microseconds since 1970.
        shares: By task, of the requests that it kept.
        signals: Every comparison.
    """

    first: int
    rows: int
    start: int
    end: int
    shares: dict[str, float]
    signals: list[Signal]

    @property
    def alerts(self) -> list[Signal]:
        """The comparisons that alert, the least probable first."""
        return sorted((s for s in self.signals if s.alerts), key=lambda s: s.p)


def watch_traffic(
    reference: Profile, traffic: Traffic, specs: Sequence[TaskSpec], config: DriftConfig
) -> list[Window]:
    """Every full window of the traffic, compared with the reference.

    Raises:
        InputError: The reference is too small, or the traffic has no full window.
    """
    if len(reference) < config.window // 2:
        raise InputError(
            f"the reference has {len(reference)} requests, too few for windows of {config.window}"
        )
    if len(traffic.profile) < config.window:
        raise InputError(
            f"{len(traffic.profile)} requests, a window has {config.window}: wait for more, or "
            "lower --window"
        )
    starts = range(0, len(traffic.profile) - config.window + 1, config.window)
    return [_window(reference, traffic, first, specs, config) for first in starts]


def _window(
    reference: Profile,
    traffic: Traffic,
    first: int,
    specs: Sequence[TaskSpec],
    config: DriftConfig,
) -> Window:
    rows = np.arange(first, first + config.window)
    ours = traffic.profile.rows(rows)
    kept = np.bincount(ours.task_N[~ours.abstained_N], minlength=len(specs))
    names = [spec.name for spec in specs]
    signals = []
    for name, compare in comparisons(config.known_mix).items():
        p, value, reason = compare(ours, reference, specs)
        signals.append(Signal(name=name, p=p, level=config.level(name), value=value, reason=reason))
    return Window(
        first=first,
        rows=len(ours),
        start=int(traffic.time_N[rows[0]]),
        end=int(traffic.time_N[rows[-1]]),
        shares=dict(zip(names, (kept / max(kept.sum(), 1)).tolist(), strict=True)),
        signals=signals,
    )
