"""Which rows an optimizer step holds: how much of each task, in what order, in which micro-batches.

The plan of a step is a function of seed and position alone, so that it can be computed again by a
resumed run, by another worker or on another rank. Every rank plans the whole step and takes its
share, so a step holds the same rows on any number of ranks. Nothing here reads a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from moe.config import MixingConfig
from moe.data.tables import TrainingItems
from moe.data.windows import token_budget
from moe.ranks import shares
from moe.types import InputError

WINDOW_STEPS = 50  # rows of this many steps are sorted by length together: 2-3 % padding
MIN_PASSAGE, MAX_PASSAGE = 8, 128  # tokens of a foreign passage attached to a classifier row

Array = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PlannedRow:
    """One row of a step, before it is read.

    Attributes:
        task: Number of the stream: of the task, or the number of tasks for a routing row.
        item: Index among the task's training items.
        noised: Whether the text is met with noise.
        donor: Row of the first span task whose context is attached, -1 for none.
        donor_first: First token taken from the donor's context.
        donor_length: Tokens taken from it.
        length: Tokens of the window, special ones included.
    """

    task: int
    item: int
    noised: bool
    donor: int
    donor_first: int
    donor_length: int
    length: int


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """One optimizer step of one rank.

    Attributes:
        position: Counted from 0.
        micro_batches: The rows of this rank.
        rows_T: Rows of each task over all ranks, without routing rows: they are of no task.
        rounds: Times that micro-batches are encoded together, on the rank that needs most.
    """

    position: int
    micro_batches: tuple[tuple[PlannedRow, ...], ...]
    rows_T: tuple[int, ...]
    rounds: int = 1


def task_shares(
    sizes: Sequence[int],
    mixing: MixingConfig,
    progress: NDArray[np.float64],
    names: Sequence[str],
) -> NDArray[np.float64]:
    """Share of each task in a step (steps, T), rows summing to 1.

    Args:
        sizes: Training items of each task.
        mixing: The kind of mix.
        progress: (steps,) share of the training done, in [0, 1]; only `annealed` depends on it.
        names: Of the tasks, for `fixed`.
    """
    counts = np.array(sizes, dtype=np.float64)
    proportional = counts / counts.sum()
    uniform = np.full(len(sizes), 1 / len(sizes))
    if mixing.kind == "annealed":
        return proportional + progress[:, None] * (uniform - proportional)
    if mixing.kind == "fixed":
        shares = mixing.shares or {}
        missing = [name for name in names if name not in shares]
        if missing:
            raise InputError(f"data.mixing.shares has no task {missing[0]!r}, got {shares}")
        weights = np.array([shares[name] for name in names])
    elif mixing.kind == "temperature":
        weights = counts ** (1 / mixing.temperature)
    else:
        weights = proportional if mixing.kind == "proportional" else uniform
    return np.tile(weights / weights.sum(), (len(progress), 1))


def neighbours(sizes: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices of neighbouring micro-batches in groups that are encoded together.

    Args:
        sizes: Tokens of each with padding.
        max_tokens: Most tokens of a group; a larger micro-batch is alone.
    """
    groups: list[list[int]] = []
    tokens = 0
    for index, size in enumerate(sizes):
        if not groups or tokens + size > max_tokens:
            groups.append([])
            tokens = 0
        groups[-1].append(index)
        tokens += size
    return groups


def rows_per_step(shares_ST: NDArray[np.float64], batch_size: int) -> Array:
    """Whole rows (steps, T) that follow the shares as closely as they can over time, at least 1."""
    due_ST = np.floor(np.cumsum(shares_ST * batch_size, axis=0) + 0.5).astype(np.int64)
    return np.maximum(np.diff(due_ST, axis=0, prepend=0), 1)


class StepPlanner:
    """Plans every optimizer step of a training run.

    Each task is a stream: its items shuffled, and shuffled anew when they run out. The rows of
    `WINDOW_STEPS` steps are taken from the stream, sorted by length, cut into one piece per step,
    and the pieces dealt to the steps at random: a step has rows of every task, those of one task
    about equally long.

    Args:
        items: Training items of each task.
        names: Of the tasks.
        can_attach: For each task whether its rows may get a foreign passage.
        donors: Context tokens (rows,) of the task whose passages are attached, None without one.
        mixing: How much of each task.
        batch_size: Rows of a step.
        max_tokens: Most tokens of a micro-batch.
        max_padding: Most padding of a micro-batch as a share of its tokens.
        max_length: Longest window in tokens.
        attach_context: Share of the rows that get a passage.
        noise: Share of the rows met with noise.
        total_steps: Optimizer steps of the whole run.
        seed: Of order, noise and attachments.
        routing: Items of the routing rows, None without any.
        routing_share: Routing rows of a step, as a share of `batch_size`, on top of it.
    """

    def __init__(
        self,
        *,
        items: Sequence[TrainingItems],
        names: Sequence[str],
        can_attach: Sequence[bool],
        donors: Array | None,
        mixing: MixingConfig,
        batch_size: int,
        max_tokens: int,
        max_padding: float,
        max_length: int,
        attach_context: float,
        noise: float,
        total_steps: int,
        seed: int,
        routing: TrainingItems | None = None,
        routing_share: float = 0.0,
    ) -> None:
        if batch_size < len(items):
            raise InputError(f"data.batch_size {batch_size} is smaller than the {len(items)} tasks")
        self.items = list(items)
        self.num_tasks = len(items)
        self.attach = [
            attach_context if can and donors is not None and donors.max() >= MIN_PASSAGE else 0.0
            for can in can_attach
        ]
        self.donors = donors
        if donors is not None:
            self.long_enough = np.flatnonzero(donors >= MIN_PASSAGE)
        self.max_tokens, self.max_padding, self.max_length = max_tokens, max_padding, max_length
        self.noise = noise
        self.seed = seed
        progress = np.arange(total_steps) / max(total_steps - 1, 1)
        shares_ST = task_shares([len(i) for i in items], mixing, progress, names)
        self.rows_ST = rows_per_step(shares_ST, batch_size)
        if routing is not None and routing_share > 0:
            self.items.append(routing)
            self.attach.append(0.0)
            extra_S1 = np.full((total_steps, 1), routing_share)
            self.rows_ST = np.hstack([self.rows_ST, rows_per_step(extra_S1, batch_size)])
        self.window = lru_cache(maxsize=2)(self._window)

    def __len__(self) -> int:
        return len(self.rows_ST)

    @property
    def smallest_step(self) -> int:
        """Fewest rows of a step: as many ranks find work in each."""
        return int(self.rows_ST.sum(1).min())

    def step(self, position: int, rank: int = 0, num_ranks: int = 1) -> StepPlan:
        """The plan of an optimizer step.

        Args:
            position: Counted from 0.
            rank: Whose share of the rows.
            num_ranks: Ranks that share them, about equally many tokens each.
        """
        rows = self.window(position // WINDOW_STEPS)[position % WINDOW_STEPS]
        parts = [
            self._micro_batches([rows[i] for i in share])
            for share in shares([row.length for row in rows], num_ranks)
        ]
        return StepPlan(
            position=position,
            micro_batches=parts[rank],
            rows_T=tuple(int(n) for n in self.rows_ST[position, : self.num_tasks]),
            rounds=max(map(self._rounds, parts)),
        )

    def _micro_batches(self, rows: Sequence[PlannedRow]) -> tuple[tuple[PlannedRow, ...], ...]:
        groups = token_budget([r.length for r in rows], self.max_tokens, self.max_padding)
        return tuple(tuple(rows[i] for i in group) for group in groups)

    def _rounds(self, micro_batches: Sequence[Sequence[PlannedRow]]) -> int:
        sizes = [len(rows) * max(row.length for row in rows) for rows in micro_batches]
        return len(neighbours(sizes, self.max_tokens))

    def _window(self, window: int) -> list[list[PlannedRow]]:
        first = window * WINDOW_STEPS
        steps = range(first, min(first + WINDOW_STEPS, len(self)))
        planned: list[list[PlannedRow]] = [[] for _ in steps]
        for task in range(len(self.items)):
            counts = self.rows_ST[first : steps.stop, task]
            seen = int(self.rows_ST[:first, task].sum())
            attached = self._attached(task, seen, counts)
            stream = self._stream(task, seen, int(counts.sum()))
            chance = np.random.default_rng([self.seed, 1, task, window])
            cut = int(attached.sum())
            with_passage = [self._row(task, i, chance, attach=True) for i in stream[:cut]]
            without = [self._row(task, i, chance, attach=False) for i in stream[cut:]]
            for rows, sizes in ((with_passage, attached), (without, counts - attached)):
                _deal(rows, sizes, planned, chance)
        return planned

    def _attached(self, task: int, seen: int, counts: Array) -> Array:
        """How many rows of each step get a passage: the share, rounded over time."""
        due = np.floor(self.attach[task] * (seen + np.cumsum(counts)))
        start = np.floor(self.attach[task] * seen)
        return np.diff(due, prepend=start).astype(np.int64)

    def _stream(self, task: int, start: int, count: int) -> list[int]:
        """`count` items of the task's endless shuffled stream from position `start` on."""
        size = len(self.items[task])
        drawn: list[int] = []
        while len(drawn) < count:
            epoch, at = divmod(start + len(drawn), size)
            order = np.random.default_rng([self.seed, 0, task, epoch]).permutation(size)
            drawn += order[at : at + count - len(drawn)].tolist()
        return drawn

    def _row(
        self, task: int, item: int, chance: np.random.Generator, *, attach: bool
    ) -> PlannedRow:
        items = self.items[task]
        noised = bool(chance.random() < self.noise)
        text = int((items.noised if noised else items.text)[item])
        context = int(items.context[item])
        donor, donor_first, donor_length = -1, 0, 0
        room = min(self.max_length - 3 - text, MAX_PASSAGE)
        if attach and self.donors is not None and context == 0 and room >= MIN_PASSAGE:
            donor = int(chance.choice(self.long_enough))
            available = int(self.donors[donor])
            donor_length = context = min(available, int(chance.integers(MIN_PASSAGE, room + 1)))
            donor_first = int(chance.integers(available - donor_length + 1))
        length = text + (context + 3 if context else 2)
        return PlannedRow(
            task=task,
            item=item,
            noised=noised,
            donor=donor,
            donor_first=donor_first,
            donor_length=donor_length,
            length=length,
        )


def _deal(
    rows: list[PlannedRow],
    sizes: Array,
    planned: list[list[PlannedRow]],
    chance: np.random.Generator,
) -> None:
    """Deals the rows, sorted by length, in pieces of `sizes` to the steps in random order."""
    ranked = sorted(rows, key=lambda row: row.length)
    at = 0
    for step in chance.permutation(len(sizes)):
        planned[step] += ranked[at : at + sizes[step]]
        at += sizes[step]
