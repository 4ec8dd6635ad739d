"""The ways in which a window of requests is compared with a reference.

Each returns a p-value, a number to draw, and what changed in words.

Dimensions: N requests of a window, M of the reference, T tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from moe.decode import Floats
from moe.monitor.two_samples import same_rate, same_shares, same_values, same_vectors
from moe.profile import Profile
from moe.types import TaskSpec, expert_columns

_END = 0.05  # share of the reference's requests of a task that counts as its end
_MATCHED = 700  # rows of the reference that embeddings are compared with

Found = tuple[float, float, str]
Comparison = Callable[[Profile, Profile, Sequence[TaskSpec]], Found]


def _task_share(
    ours: Profile, theirs: Profile, specs: Sequence[TaskSpec], known: bool = False
) -> Found:
    counts = [np.bincount(p.task_N[~p.abstained_N], minlength=len(specs)) for p in (ours, theirs)]
    shares = [count / max(count.sum(), 1) for count in counts]
    p = same_shares(counts[0].tolist(), counts[1].tolist(), known=known)
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


def _flags(field: str, words: str) -> Comparison:
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


def _values(field: str, words: str, tail: str) -> Comparison:
    """A number of each request, compared inside its task: all of them, and those at one end.

    Ranks see a small change of every request, the end sees a large one of some.
    """

    def compare(ours: Profile, theirs: Profile, specs: Sequence[TaskSpec]) -> Found:
        strata = [
            (_of_task(ours, field, number), _of_task(theirs, field, number))
            for number in range(len(specs))
        ]
        p, shift = same_values(strata)
        mine, other, rows, known = np.sum([_beyond(*s, tail) for s in strata], axis=0)
        end = float(mine / max(rows, 1))
        p_end = same_rate(int(mine), int(rows), int(other), int(known))
        names = [spec.name for spec in specs]
        if p_end < p:
            most = names[int(np.argmax([_beyond(*s, tail)[0] for s in strata]))]
            reason = (
                f"{words}: requests in the {tail}est {100 * _END:.0f} % of the reference "
                f"{_from_to(other / max(known, 1), end)}, most of them in {most}"
            )
            return min(1.0, 2 * p_end), end, reason
        most = names[int(np.argmin([same_values([s])[0] for s in strata]))]
        reason = (
            f"{words} {'higher' if shift > 0 else 'lower'}: a request beats one of the reference "
            f"in {100 * (0.5 + shift):.0f} of 100 pairs, most clearly in {most}"
        )
        return min(1.0, 2 * p), end, reason

    return compare


def _of_task(profile: Profile, field: str, task: int) -> Floats:
    values: Floats = getattr(profile, field)[profile.task_N == task].astype(np.float64)
    return values[~np.isnan(values)]


def _beyond(ours_N: Floats, theirs_M: Floats, tail: str) -> tuple[int, int, int, int]:
    """How many of each lie beyond the reference's end of `_END`, and how many there are."""
    if len(theirs_M) < 100:
        return 0, 0, 0, 0
    sign = 1.0 if tail == "high" else -1.0
    edge = np.quantile(sign * theirs_M, 1 - _END)
    counts = [int((sign * values > edge).sum()) for values in (ours_N, theirs_M)]
    return counts[0], counts[1], len(ours_N), len(theirs_M)


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


_COMPARISONS: Mapping[str, Comparison] = {
    "task share": _task_share,
    "expert load": _expert_load,
    "abstained": _abstained,
    "out of scope": _flags("out_of_scope_N", "out-of-scope rate"),
    "no answer": _flags("no_answer_N", "no-answer rate"),
    "confidence": _values("confidence_N", "confidence", "low"),
    "strangeness": _values("strangeness_N", "likeness to texts of no task", "high"),
    "spelling": _values("fragmentation_N", "breaking of words", "high"),
    "embedding": _embedding,
}


def comparisons(known_mix: bool) -> Mapping[str, Comparison]:
    """All comparisons by the name of their signal.

    Args:
        known_mix: Whether the reference's shares of the tasks are exact, and not those of a sample.
    """
    return {**_COMPARISONS, "task share": partial(_task_share, known=known_mix)}
