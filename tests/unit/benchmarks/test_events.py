"""The batches that the predictor alone gets are those of the server's queue."""

from __future__ import annotations

import pytest

from moe.benchmarks.events import budgeted


@pytest.mark.parametrize(("tokens", "expected"), [
    ([4, 6, 1], [(0, 2), (2, 3)]),  # 4 + 6 fill ten, 1 more would be eleven
    ([11, 1, 9, 1], [(0, 1), (1, 3), (3, 4)]),  # one that is too large is alone
    ([3], [(0, 1)]),
])
def test_batches_keep_the_order_and_the_budget(
    tokens: list[int], expected: list[tuple[int, int]]
) -> None:
    assert [(part.start, part.stop) for part in budgeted(tokens, 10)] == expected
