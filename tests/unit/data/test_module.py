"""The order of positions over epochs, and after an interruption."""

from __future__ import annotations

from moe.data.module import PositionSampler


def positions(sampler: PositionSampler, epochs: int) -> list[list[int]]:
    drawn = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        drawn.append(list(sampler))
    return drawn


def test_every_epoch_goes_on_where_the_last_one_ended() -> None:
    assert positions(PositionSampler(3, total_steps=8), 3) == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_an_interrupted_epoch_starts_behind_what_was_done() -> None:
    sampler = PositionSampler(3, total_steps=8)
    sampler.done = 4
    sampler.set_epoch(1)
    assert list(sampler) == [4, 5]
    sampler.set_epoch(2)
    assert list(sampler) == [6, 7]
