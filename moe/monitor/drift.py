"""Whether traffic is still what a model was validated on, window by window.

Every window is compared with a reference in several ways. A window alerts if one of them would
happen by chance with a probability below its share of `alpha / horizon`: over `horizon` windows of
unchanged traffic the chance of any alert is at most `alpha` (Bonferroni, over windows and tests).

Dimensions: N requests of a window, T tasks, E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moe.model_config import check_range
from moe.monitor.reading import Traffic
from moe.monitor.two_samples import same_rate, same_shares, same_values, same_vectors
from moe.profile import Profile
from moe.types import InputError, TaskSpec, expert_columns

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
_MATCHED = 1000  # rows of the reference that embeddings are compared with


@dataclass(frozen=True, kw_only=True)
class DriftConfig:
    """How traffic is watched.

    Attributes:
        window: Requests of a window; a rest that is shorter waits for more.
        alpha: Chance of any alert over `horizon` windows of unchanged traffic, in (0, 0.5].
        horizon: Windows over which `alpha` is shared.
    """

    window: int = 500
    alpha: float = 0.01
    horizon: int = 20

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
    for name, compare in _COMPARISONS.items():
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


# --- the comparisons: ours, the reference, the tasks -> p, value, reason ----------------------

Found = tuple[float, float, str]


def _task_share(ours: Profile, theirs: Profile, specs: Sequence[TaskSpec]) -> Found:
    counts = [np.bincount(p.task_N[~p.abstained_N], minlength=len(specs)) for p in (ours, theirs)]
    shares = [count / max(count.sum(), 1) for count in counts]
    p = same_shares(counts[0].tolist(), counts[1].tolist())
    moved = np.argsort(-np.abs(shares[0] - shares[1]), kind="stable")
    words = [
        f"{specs[t].name} {_from_to(shares[1][t], shares[0][t])}"
        for t in moved
        if abs(shares[0][t] - shares[1][t]) >= 0.005
    ]
    return p, float(np.abs(shares[0] - shares[1]).max()), f"task shares: {', '.join(words)}"


def _expert_load(ours: Profile, theirs: Profile, specs: Sequence[TaskSpec]) -> Found:
    """The least probable of the tasks that have several experts, for all of them."""
    found = [(1.0, 0.0, "expert load")]
    tasks = [
        (spec, columns)
        for spec, columns in zip(specs, expert_columns(specs), strict=True)
        if spec.num_experts > 1
    ]
    for spec, columns in tasks:
        counts = [
            np.array([((p.expert_N == e) & ~p.abstained_N).sum() for e in columns])
            for p in (ours, theirs)
        ]
        shares = [count / max(count.sum(), 1) for count in counts]
        p = same_shares(counts[0].tolist(), counts[1].tolist()) * len(tasks)
        expert = int(np.abs(shares[0] - shares[1]).argmax())
        reason = (
            f"load inside {spec.name}: {spec.expert_names[expert]} "
            f"{_from_to(shares[1][expert], shares[0][expert])}"
        )
        found.append((min(p, 1.0), float(abs(shares[0] - shares[1]).max()), reason))
    return min(found)


def _abstained(ours: Profile, theirs: Profile, specs: Sequence[TaskSpec]) -> Found:
    hits = [int(p.abstained_N.sum()) for p in (ours, theirs)]
    p = same_rate(hits[0], len(ours), hits[1], len(theirs))
    rates = [hits[0] / len(ours), hits[1] / len(theirs)]
    nearest = np.bincount(ours.task_N[ours.abstained_N], minlength=len(specs))
    reason = f"requests that fit no task {_from_to(rates[1], rates[0])}"
    if nearest.any():
        reason += f", most of them nearest to {specs[int(nearest.argmax())].name}"
    return p, rates[0], reason


def _flags(field: str, words: str) -> Callable[[Profile, Profile, Sequence[TaskSpec]], Found]:
    """Rates of a flag inside each task that has it; the least probable, for all of them."""

    def compare(ours: Profile, theirs: Profile, specs: Sequence[TaskSpec]) -> Found:
        found = []
        for number, spec in enumerate(specs):
            mine, other = (
                getattr(p, field)[(p.task_N == number) & ~p.abstained_N] for p in (ours, theirs)
            )
            mine, other = mine[mine >= 0], other[other >= 0]
            if len(mine) and len(other):
                p = same_rate(int(mine.sum()), len(mine), int(other.sum()), len(other))
                reason = f"{words} of {spec.name} {_from_to(other.mean(), mine.mean())}"
                found.append((p, float(mine.mean()), reason))
        if not found:
            return 1.0, 0.0, words
        p, value, reason = min(found)
        return min(1.0, p * len(found)), value, reason

    return compare


def _values(field: str, words: str) -> Callable[[Profile, Profile, Sequence[TaskSpec]], Found]:
    """A number of each request, compared inside its task."""

    def compare(ours: Profile, theirs: Profile, specs: Sequence[TaskSpec]) -> Found:
        strata = [
            tuple(getattr(p, field)[p.task_N == number].astype(np.float64) for p in (ours, theirs))
            for number in range(len(specs))
        ]
        p, shift = same_values([(mine, other) for mine, other in strata])
        each = [same_values([(mine, other)])[0] for mine, other in strata]
        most = specs[int(np.argmin(each))].name
        direction = "higher" if shift > 0 else "lower"
        chance = 100 * (0.5 + abs(shift))
        reason = (
            f"{words} {direction}: a request beats one of the reference in {chance:.0f} of 100 "
            f"pairs, most clearly in {most}"
        )
        return p, shift, reason

    return compare


def _embedding(ours: Profile, theirs: Profile, specs: Sequence[TaskSpec]) -> Found:
    """Against rows of the reference in the window's own mix of tasks: a moved mix is no shift."""
    mine, other = _matched(ours, theirs, len(specs))
    if len(mine) < 50 or len(other) < 50:
        return 1.0, 0.0, "embeddings: none, or too few"
    p, value = same_vectors(mine, other)
    far = np.nanquantile(theirs.strangeness_N, 0.99) if _any(theirs.strangeness_N) else np.nan
    share = float(np.mean(ours.strangeness_N > far)) if _any(ours.strangeness_N) else 0.0
    nearest = np.bincount(ours.task_N[ours.strangeness_N > far], minlength=len(specs))
    reason = f"embeddings moved (discrepancy {value:.2g})"
    if share:
        reason += (
            f", {100 * share:.0f} % of the requests lie where 1 % of the reference does, nearest "
            f"to {specs[int(nearest.argmax())].name}"
        )
    return p, value, reason


def _any(values_N: np.ndarray) -> bool:
    return bool(np.isfinite(values_N).any())


def _matched(ours: Profile, theirs: Profile, tasks: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, D) and (M, D) float32 embeddings with the same share of each task."""
    empty = np.zeros((0, 1), dtype=np.float32)
    known = theirs.embedding_MD
    if not ours.embedding_MD.size or ours.embedding_MD.shape[1:] != known.shape[1:]:
        return empty, empty
    own_N, other_M = ours.task_N[: len(ours.embedding_MD)], theirs.task_N[: len(known)]
    counts = np.bincount(own_N, minlength=tasks)
    there = np.bincount(other_M, minlength=tasks)
    usable = (there >= 20) & (counts > 0)
    if not usable.any():
        return empty, empty
    times = min(_MATCHED / counts[usable].sum(), (there[usable] / counts[usable]).min())
    rows = [np.flatnonzero(other_M == t)[: int(times * counts[t])] for t in np.flatnonzero(usable)]
    mine = ours.embedding_MD[usable[own_N]]
    return mine.astype(np.float32), known[np.concatenate(rows)].astype(np.float32)


def _from_to(before: float, after: float) -> str:
    verb = "rose" if after > before else "fell"
    return f"{verb} from {100 * before:.1f} % to {100 * after:.1f} %"


_COMPARISONS: Mapping[str, Callable[[Profile, Profile, Sequence[TaskSpec]], Found]] = {
    "task share": _task_share,
    "expert load": _expert_load,
    "abstained": _abstained,
    "out of scope": _flags("out_of_scope_N", "out-of-scope rate"),
    "no answer": _flags("no_answer_N", "no-answer rate"),
    "confidence": _values("confidence_N", "confidence"),
    "strangeness": _values("strangeness_N", "likeness to texts of no task"),
    "spelling": _values("spelling_N", "tokens a character"),
    "embedding": _embedding,
}
