"""Which steps are skipped, and when that ends training."""

from __future__ import annotations

import pytest

from moe.guard import StepGuard
from moe.types import NonFiniteError


def outcomes(guard: StepGuard, steps: str) -> list[bool]:
    return [guard.passes(step == "+", number, "loss nan") for number, step in enumerate(steps)]


def test_steps_are_skipped_and_counted() -> None:
    guard = StepGuard(3)
    assert outcomes(guard, "+--+-+") == [True, False, False, True, False, True]
    assert guard.state_dict() == {"skipped": 3, "in_a_row": 0}


@pytest.mark.parametrize(("limit", "steps"), [(1, "-"), (3, "+---"), (2, "-+--")])
def test_too_many_in_a_row_end_training(limit: int, steps: str) -> None:
    guard = StepGuard(limit)
    outcomes(guard, steps[:-1])
    with pytest.raises(NonFiniteError, match=rf"step 9: loss nan, the last of {limit} such steps"):
        guard.passes(False, 9, "loss nan")


def test_a_resumed_run_goes_on_counting() -> None:
    before, after = StepGuard(3), StepGuard(3)
    outcomes(before, "--")
    after.load_state_dict(before.state_dict())
    with pytest.raises(NonFiniteError, match="the last of 3"):
        outcomes(after, "-")
