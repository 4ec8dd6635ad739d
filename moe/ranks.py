"""Several processes of one training: sums over all of them, and what one does for all.

Each has a rank, counted from 0. In a single process all of this does nothing, at no cost.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from moe.types import InputError

T = TypeVar("T")


def num_ranks() -> int:
    """Processes of this training; 1 before they are connected."""
    return dist.get_world_size() if _connected() else 1


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if _connected() else 0


def _connected() -> bool:
    return dist.is_available() and dist.is_initialized()


def shares(costs: Sequence[int], count: int) -> list[list[int]]:
    """Indices of the items that each of `count` ranks takes, ascending; every item once.

    The costliest item goes first, each to the rank with the least so far (Graham 1969): with as
    many items as ranks none stays empty.

    Args:
        costs: Positive, of each item.
        count: Ranks.
    """
    if count == 1:
        return [list(range(len(costs)))]
    taken: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, number) for number in range(count)]
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        load, number = heapq.heappop(loads)
        taken[number].append(index)
        heapq.heappush(loads, (load + costs[index], number))
    return [sorted(indices) for indices in taken]


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over all ranks, the same bits on each; on a GPU nothing waits for it."""
    if num_ranks() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total


def summed(numbers: Sequence[float]) -> list[float]:
    """The sum of each number over all ranks, which wait for each other."""
    if num_ranks() == 1:
        return list(numbers)
    # NCCL exchanges what is on a GPU, gloo what is not.
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    found: list[float] = sum_over_ranks(torch.tensor(numbers, device=device).float()).tolist()
    return found


def gathered(value: T) -> list[T]:
    """Every rank's value in their order, on rank 0; nothing elsewhere."""
    if num_ranks() == 1:
        return [value]
    found: list[T | None] | None = [None] * num_ranks() if rank() == 0 else None
    dist.gather_object(value, found)
    return found or []  # type: ignore[return-value]


def on_all(value: T) -> list[T]:
    """Every rank's value in their order, on all of them."""
    if num_ranks() == 1:
        return [value]
    found: list[T | None] = [None] * num_ranks()
    dist.all_gather_object(found, value)
    return found  # type: ignore[return-value]


def from_first(make: Callable[[], T]) -> T:
    """What rank 0 makes, for all; the others wait.

    Raises:
        InputError: Rank 0 met it; all raise it.
    """
    if num_ranks() == 1:
        return make()
    made: list[T | InputError | None] = [None]
    if rank() == 0:
        try:
            made[0] = make()
        except InputError as error:
            made[0] = error
    dist.broadcast_object_list(made)
    if isinstance(made[0], InputError):
        raise made[0]
    return made[0]  # type: ignore[return-value]


def first_before_others(make: Callable[[], T]) -> T:
    """Each makes it, rank 0 before the others: what it leaves in a cache they find.

    Raises:
        InputError: Rank 0 met it; all raise it.
    """
    if num_ranks() == 1:
        return make()
    made: list[T] = []
    from_first(lambda: made.append(make()))
    return made[0] if made else make()
