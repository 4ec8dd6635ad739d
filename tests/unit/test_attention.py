"""Attention by hand, and that padding takes no part."""

from __future__ import annotations

import pytest
import torch

from moe.attention import attend, padding_bias


def test_two_heads_by_hand() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 5, 8).unbind()
    mask = torch.tensor([[True] * 5, [True, True, False, True, False]])
    found = attend(query, key, value, padding_bias(mask, query), num_heads=2)
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
    bias = padding_bias(mask, states)
    before, after = (attend(s, s, s, bias, num_heads=3)[:, :3] for s in (states, changed))
    assert torch.equal(before, after)


def test_dropout_drops_weights() -> None:
    ones = torch.ones(1, 64, 4)
    assert torch.allclose(attend(ones, ones, ones, None, num_heads=1), ones)
    dropped = attend(ones, ones, ones, None, num_heads=1, dropout=0.5)
    assert not torch.allclose(dropped, ones)


def test_the_bias_by_hand() -> None:
    states = torch.zeros(2, 2, 4)
    padded = torch.tensor([[True, True], [True, False]])
    expected = torch.tensor([[0.0, 0.0], [0.0, -torch.inf]])[:, None, None]
    assert torch.equal(padding_bias(padded, states), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(padding_bias(padded, states), expected.bfloat16())
    assert padding_bias(torch.ones(2, 2, dtype=torch.bool), states) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 7, 33, 200])
def test_no_bias_is_a_bias_of_zeros_to_the_bit(length: int, dtype: torch.dtype) -> None:
    # A row of full length has none by itself, and zeros beside a shorter one.
    torch.manual_seed(0)
    states = torch.randn(2, length, 24).to(dtype)
    zeros = torch.zeros(2, 1, 1, length, dtype=dtype)
    found = [attend(states, states, states, bias, num_heads=2) for bias in (None, zeros)]
    assert torch.equal(*found)
