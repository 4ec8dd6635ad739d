"""Dispatch: every (row, expert) pair once, idle experts absent, nothing dropped."""

from __future__ import annotations

import pytest
import torch

from moe.dispatch import dispatch, dispatch_together


def test_dispatch_by_hand() -> None:
    chosen = torch.tensor([
        [True, False, True, False],
        [True, False, False, False],
        [True, False, True, True],
    ])
    assignments = dispatch(chosen)
    assert [(a.expert, a.rows_N.tolist(), a.is_whole) for a in assignments] == [
        (0, [0, 1, 2], True), (2, [0, 2], False), (3, [2], False),  # expert 1 is idle
    ]
    assert all(a.rows_N.dtype == torch.int64 for a in assignments)


def test_one_row_is_whole() -> None:
    assert [a.is_whole for a in dispatch(torch.tensor([[False, True]]))] == [True]


@pytest.mark.parametrize("seed", range(5))
def test_every_pair_once(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(17, 9, generator=generator) < 0.3
    # A capacity would drop from a popular expert: expert 4 gets every row.
    chosen[:, 4] = True
    pairs = [(row, a.expert) for a in dispatch(chosen) for row in a.rows_N.tolist()]
    assert sorted(pairs) == [tuple(pair) for pair in chosen.nonzero().tolist()]
    assert [a.expert for a in dispatch(chosen)] == chosen.any(0).nonzero().flatten().tolist()
    assert [a.expert for a in dispatch(chosen) if a.is_whole] == [4]


def test_together_is_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    choices = [torch.rand(rows, 5, generator=generator) < 0.4 for rows in (3, 1, 8)]
    for parts, chosen in zip(dispatch_together(choices), choices, strict=True):
        said = [(a.expert, a.rows_N.tolist(), a.is_whole) for a in dispatch(chosen)]
        assert [(a.expert, a.rows_N.tolist(), a.is_whole) for a in parts] == said
