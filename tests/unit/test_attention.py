"""Attention by hand, and that padding takes no part."""

from __future__ import annotations

import torch

from moe.attention import attend


def test_two_heads_by_hand() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 5, 8).unbind()
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])
    found = attend(query, key, value, mask, num_heads=2)
    for row in range(2):
        for head in (slice(0, 4), slice(4, 8)):
            scores_LL = query[row, :, head] @ key[row, :, head].T / 2
            weights_LL = scores_LL.masked_fill(~mask[row], -torch.inf).softmax(-1)
            expected_Ld = weights_LL @ value[row, :, head]
            torch.testing.assert_close(found[row, :, head], expected_Ld)


def test_padding_takes_no_part() -> None:
    states = torch.randn(1, 4, 6)
    mask = torch.tensor([[True, True, True, False]])
    changed = states.clone()
    changed[:, 3] = 100.0
    before, after = (attend(s, s, s, mask, num_heads=3)[:, :3] for s in (states, changed))
    assert torch.equal(before, after)


def test_dropout_drops_weights() -> None:
    ones = torch.ones(1, 64, 4)
    mask = torch.ones(1, 64, dtype=torch.bool)
    assert torch.allclose(attend(ones, ones, ones, mask, num_heads=1), ones)
    dropped = attend(ones, ones, ones, mask, num_heads=1, dropout=0.5)
    assert not torch.allclose(dropped, ones)
