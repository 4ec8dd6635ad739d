"""Branches of training: which step belongs to what, and the mean of their ends."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moe.branches import Branches, BranchPlan
from moe.config import OptimizerConfig
from moe.types import InputError


def plan(branches: int, stem: float, steps: int) -> BranchPlan:
    return BranchPlan.of(OptimizerConfig(branches=branches, stem=stem), steps)


def test_every_step_belongs_to_the_stem_or_a_branch() -> None:
    found = plan(3, 0.25, 20)  # three of five steps, and what is left
    assert (found.stem, found.length, found.count, found.way) == (5, 5, 3, 10)
    assert [found.position(step) for step in range(21)] == [
        0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 10]
    assert {s: found.ended(s) for s in range(21) if found.ended(s)} == {10: 1, 15: 2, 20: 3}


@pytest.mark.parametrize(("branches", "stem", "steps", "expected"), [
    (2, 0.3, 10, (2, 4)),  # 3.5 steps each, rounded to even
    (2, 0.0, 7, (1, 3)),  # the stem takes the odd one
    (2, 0.0, 10, (0, 5)),
    (2, 1.0, 10, (8, 1)),  # at least one step each
    (2, 0.9, 2, (0, 1)),
])
def test_stem_and_length(branches: int, stem: float, steps: int, expected: tuple) -> None:
    found = plan(branches, stem, steps)
    assert (found.stem, found.length) == expected
    assert found.position(steps) == found.way  # the rate ends where a branch ends


def test_one_branch_is_a_run_as_usual() -> None:
    found = plan(1, 0.3, 7)
    assert [found.position(step) for step in range(8)] == list(range(8))
    assert (found.stem, found.length) == (0, 7)


def test_fewer_steps_than_branches() -> None:
    with pytest.raises(InputError, match="branches is 3, and training has 2 steps: raise"):
        plan(3, 0.3, 2)


class Weights(nn.Module):
    """A weight and a buffer that a step moves by 1 and 2, and a whole number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("bias", torch.zeros(1))
        self.register_buffer("places", torch.arange(3))

    def move(self, by: float) -> None:
        self.weight.data += by
        self.bias += 2 * by


def run(model: Weights, branches: Branches, steps: range) -> list[float]:
    """Steps of a size that grows, so that each branch ends elsewhere; the weight after each."""
    seen = []
    for step in steps:
        branches.before(step, model)
        model.move(by=step + 1)
        branches.after(step + 1, model)
        seen.append(model.weight[0].item())
    return seen


def test_a_branch_stands_until_the_next_one_begins() -> None:
    # The stem ends at 1 + 2; branches add 3 + 4 and 5 + 6, and their mean is 12.
    assert run(Weights(), Branches(plan(2, 0.34, 6)), range(6)) == [1, 3, 6, 10, 8, 12]
    assert run(Weights(), Branches(plan(2, 0.0, 4)), range(4)) == [1, 3, 3, 5]


@pytest.mark.parametrize(("count", "stem", "expected"), [
    # Steps 1 to 6: the stem, then what each branch adds to it.
    (1, 0.3, 21.0),
    (2, 0.0, (1 + 2 + 3 + 4 + 5 + 6) / 2),
    (2, 0.34, 1 + 2 + (3 + 4 + 5 + 6) / 2),
    (3, 0.5, 1 + 2 + 3 + (4 + 5 + 6) / 3),
])
def test_the_mean_of_the_ends(count: int, stem: float, expected: float) -> None:
    model, branches = Weights(), Branches(plan(count, stem, 6))
    run(model, branches, range(6))
    assert model.weight.tolist() == pytest.approx([expected] * 2)
    assert model.bias.item() == pytest.approx(2 * expected)
    assert model.places.tolist() == [0, 1, 2]
    assert branches.stem == branches.mean == {}  # nothing is left to go on with


@pytest.mark.parametrize("stop", range(7))
@pytest.mark.parametrize("stem", [0.0, 0.34])
def test_a_run_that_was_stopped_ends_alike(stop: int, stem: float) -> None:
    expected, whole = Weights(), Branches(plan(2, stem, 6))
    run(expected, whole, range(6))
    model, first, second = Weights(), Branches(plan(2, stem, 6)), Branches(plan(2, stem, 6))
    run(model, first, range(stop))
    again = Weights()
    again.load_state_dict(model.state_dict())
    second.load_state_dict(first.state_dict(), again)
    run(again, second, range(stop, 6))
    assert torch.equal(again.weight, expected.weight)
    assert torch.equal(again.bias, expected.bias)


def test_what_is_kept_does_not_follow_the_model() -> None:
    model, branches = Weights(), Branches(plan(2, 0.0, 4))
    run(model, branches, range(1))
    assert branches.stem["weight"].tolist() == [0.0, 0.0]
    assert branches.stem["weight"].dtype == torch.float32 and "places" not in branches.stem


def test_half_precision_is_averaged_in_float32() -> None:
    model = Weights().bfloat16()
    branches = Branches(plan(2, 0.0, 2))
    run(model, branches, range(2))
    assert model.weight.dtype == torch.bfloat16 and model.weight.tolist() == [1.5, 1.5]


@pytest.mark.parametrize(("then", "now"), [
    (plan(2, 0.0, 6), plan(2, 0.0, 8)),
    (plan(2, 0.0, 6), plan(3, 0.0, 6)),
    (plan(2, 0.0, 6), plan(1, 0.0, 6)),
    (plan(1, 0.0, 6), plan(2, 0.0, 6)),
])
def test_a_resumed_run_has_the_same_branches(then: BranchPlan, now: BranchPlan) -> None:
    model, branches = Weights(), Branches(then)
    run(model, branches, range(4))
    with pytest.raises(InputError, match="--resume: its steps belong to other branches"):
        Branches(now).load_state_dict(branches.state_dict(), model)


def test_one_branch_goes_on_with_more_steps() -> None:
    Branches(plan(1, 0.3, 9)).load_state_dict(Branches(plan(1, 0.3, 6)).state_dict(), Weights())


def test_weights_of_another_model() -> None:
    model, branches = Weights(), Branches(plan(2, 0.0, 4))
    run(model, branches, range(3))
    other = nn.Linear(2, 2)
    with pytest.raises(InputError, match="the stem of its branches: weight has shape"):
        Branches(plan(2, 0.0, 4)).load_state_dict(branches.state_dict(), other)
