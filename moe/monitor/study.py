"""How well the monitor tells changed traffic from unchanged: streams made of validation rows.

Every row is answered once, as it is and misspelt; streams are drawn from the answers. In each
stream some of the rows, chosen at random, are the reference, and requests are drawn with
replacement from the others, so that the monitor has seen none of them.

Dimensions: N requests.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe.data.augment import misspell
from moe.data.routing import read_routing_rows
from moe.data.tables import TaskTable
from moe.measure import build_test_tables
from moe.monitor.drift import DriftConfig, Window, watch_traffic
from moe.monitor.reading import Traffic, read_traffic
from moe.monitor.rows import row_of
from moe.monitor.telemetry import TelemetryWriter
from moe.predict import MixtureOfExperts
from moe.profile import Profile, join_profiles
from moe.types import TaskSpec

UNCHANGED = 10_000  # requests of a stream in which nothing changes
REFERENCE = 2 / 3  # of the rows
Indices = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Answered:
    """Rows as the monitor sees them.

    Attributes:
        specs: The tasks.
        task_N: The task that each validation row belongs to.
        clean: The validation rows.
        misspelt: The same, with a typo in every fifth word.
        strangers: Texts of other domains and languages.
    """

    specs: tuple[TaskSpec, ...]
    task_N: Indices
    clean: Profile
    misspelt: Profile
    strangers: Profile


def answer_rows(source: str, root: str | None = None, tokens: int | None = None) -> Answered:
    """Answers the validation rows of a checkpoint, and the strangers of `sample:routing`.

    Args:
        source: Checkpoint, folder or hub id.
        root: Folder of relative sources; None is that of the training.
        tokens: Of the rows of each task, chosen at random; None takes all rows.
    """
    model = MixtureOfExperts.from_pretrained(source)
    names = [spec.name for spec in model.tasks]
    tables = [_some(table, tokens) for table in build_test_tables(model.bundle, (), root)]
    records = [record for table in tables for record in table.read(range(len(table)))]
    clean = [{"text": record["text"], "context": record["context"]} for record in records]
    misspelt = [{**request, "text": misspell(request["text"])} for request in clean]
    rows = read_routing_rows("sample:routing", root=Path("."), split="test", tasks=names)
    strangers = [{"text": row.text, "context": row.context} for row in rows if not row.tasks]
    return Answered(
        specs=model.tasks,
        task_N=np.repeat([table.task for table in tables], [len(table) for table in tables]),
        clean=profile_of(model, clean),
        misspelt=profile_of(model, misspelt),
        strangers=profile_of(model, strangers),
    )


def _some(table: TaskTable, tokens: int | None) -> TaskTable:
    if tokens is None:
        return table
    order = np.random.default_rng(0).permutation(len(table))
    lengths = (table.lengths("text_ids") + table.lengths("context_ids"))[order]
    count = max(1, int(np.searchsorted(np.cumsum(lengths), tokens)))
    return replace(table, rows=table.rows.select(order[:count]))


def profile_of(model: MixtureOfExperts, requests: Sequence[Mapping[str, Any]]) -> Profile:
    """The requests in their order, as written and read as telemetry."""
    parsed = [model.parse(dict(request)) for request in requests]
    tokens = model.count_tokens(parsed)
    with tempfile.TemporaryDirectory() as folder:
        writer = TelemetryWriter(folder, waiting_rows=len(parsed) + 1)
        for number, answer in enumerate(model.answer(parsed, explain="embedding")):
            request = parsed[number]
            characters = len(request.text) + len(request.context or "")
            writer.record(
                row_of(
                    answer,
                    named=False,
                    tokens=tokens[number],
                    characters=characters,
                    latency=1.0,
                    now=float(number),
                )
            )
        writer.start()
        writer.close(600.0)
        return read_traffic(folder, model.tasks).profile


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What one stream is drawn from.

    Attributes:
        answered: All rows.
        reference: Rows that the monitor knows.
        rows_T: For each task the rows that it does not.
        shares_T: The share of each task.
        chance: Of the draws.
    """

    answered: Answered
    reference: Profile
    rows_T: list[Indices]
    shares_T: NDArray[np.float64]
    chance: np.random.Generator

    def draw(self, count: int, shares_T: NDArray[np.float64] | None = None) -> Indices:
        """Rows, drawn with replacement by the shares of the tasks."""
        shares_T = self.shares_T if shares_T is None else shares_T
        tasks = self.chance.choice(len(shares_T), size=count, p=shares_T)
        drawn: Indices = np.array([self.chance.choice(self.rows_T[task]) for task in tasks])
        return drawn


def make_pool(answered: Answered, seed: int) -> Pool:
    """A split of the rows into reference and the rest, task by task."""
    chance = np.random.default_rng(seed)
    known, rest = [], []
    for task in range(len(answered.specs)):
        rows = chance.permutation(np.flatnonzero(answered.task_N == task))
        cut = round(REFERENCE * len(rows))
        known.append(rows[:cut])
        rest.append(rows[cut:])
    counts = np.bincount(answered.task_N, minlength=len(answered.specs))
    reference = answered.clean.rows(chance.permutation(np.concatenate(known)))
    return Pool(
        answered=answered,
        reference=reference,
        rows_T=rest,
        shares_T=counts / counts.sum(),
        chance=chance,
    )


def unchanged(pool: Pool, count: int) -> Profile:
    """Requests of the reference's mix."""
    return pool.answered.clean.rows(pool.draw(count))


def moved_share(pool: Pool, count: int) -> Profile:
    """Ten points of the traffic go from one task to another, both drawn at random."""
    shares_T = pool.shares_T.copy()
    source = pool.chance.choice(np.flatnonzero(shares_T > 0.1))
    target = pool.chance.choice(np.delete(np.arange(len(shares_T)), source))
    shares_T[source] -= 0.1
    shares_T[target] += 0.1
    return pool.answered.clean.rows(pool.draw(count, shares_T))


def new_domain(pool: Pool, count: int) -> Profile:
    """15 % of the requests are of other domains and languages."""
    strange = pool.chance.choice(len(pool.answered.strangers), size=round(0.15 * count))
    kept = pool.answered.clean.rows(pool.draw(count - len(strange)))
    return _shuffled([kept, pool.answered.strangers.rows(strange)], pool)


def more_typos(pool: Pool, count: int) -> Profile:
    """20 % of the requests have a typo in every fifth word."""
    cut = round(0.2 * count)
    drawn = pool.draw(count)
    parts = [pool.answered.misspelt.rows(drawn[:cut]), pool.answered.clean.rows(drawn[cut:])]
    return _shuffled(parts, pool)


CHANGES: Mapping[str, Callable[[Pool, int], Profile]] = {
    "task share moved by 10 points": moved_share,
    "15 % of other domains and languages": new_domain,
    "20 % with a typo in every fifth word": more_typos,
}


def _shuffled(parts: Sequence[Profile], pool: Pool) -> Profile:
    whole = join_profiles(parts)
    return whole.rows(pool.chance.permutation(len(whole)))


def watch(pool: Pool, stream: Profile, config: DriftConfig) -> list[Window]:
    """The windows of a stream whose requests are a second apart."""
    times = np.arange(len(stream), dtype=np.int64) * 1_000_000
    traffic = Traffic(model="", time_N=times, profile=stream)
    return watch_traffic(pool.reference, traffic, pool.answered.specs, config)


def study(
    answered: Answered, config: DriftConfig, streams: int = 20, length: int = UNCHANGED
) -> dict[str, Any]:
    """Streams in which nothing changes, and streams that change after one window.

    Returns:
        `unchanged`: streams, how many alerted, and the alerting signals; `changes`: by kind how
        many streams alerted in the first window after the change, before it, and by which signal.
    """
    quiet: list[list[str]] = []
    found: dict[str, dict[str, Any]] = {
        name: {"flagged": 0, "before": 0, "signals": {}} for name in CHANGES
    }
    for seed in range(streams):
        pool = make_pool(answered, seed)
        windows = watch(pool, unchanged(pool, length), config)
        quiet.append([signal.name for window in windows for signal in window.alerts])
        for name, change in CHANGES.items():
            stream = join_profiles([unchanged(pool, config.window), change(pool, config.window)])
            before, after = watch(pool, stream, config)
            found[name]["flagged"] += bool(after.alerts)
            found[name]["before"] += bool(before.alerts)
            for signal in after.alerts:
                count = found[name]["signals"].get(signal.name, 0)
                found[name]["signals"][signal.name] = count + 1
    return {
        "streams": streams,
        "unchanged": {"length": length, "alerted": sum(map(bool, quiet)), "signals": quiet},
        "changes": found,
    }


def study_text(report: Mapping[str, Any]) -> str:
    """The study as lines."""
    total, quiet = report["streams"], report["unchanged"]
    lines = [f"unchanged, {quiet['length']} requests: {quiet['alerted']} of {total} streams alert"]
    for name, values in report["changes"].items():
        signals = ", ".join(f"{signal} {count}" for signal, count in values["signals"].items())
        lines.append(
            f"{name}: {values['flagged']} of {total} flagged in the window after the change "
            f"({signals}); {values['before']} in the window before"
        )
    return "\n".join(lines)
