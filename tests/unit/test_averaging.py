"""The mean of the weights over the last part of training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from moe.averaging import EVERY, WeightAverage
from moe.types import InputError


class Weights(nn.Module):
    """A weight, a buffer with fractions, and one of whole numbers."""

    bias: torch.Tensor
    places: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("places", torch.arange(3))


def run(model: Weights, average: WeightAverage, steps: range) -> None:
    """After n steps the weight is n squared before it is averaged, and the bias twice that."""
    for step in steps:
        model.weight.data.fill_((step + 1) ** 2)
        model.bias.fill_(2 * (step + 1) ** 2)
        average.update(step + 1, model)


@pytest.mark.parametrize(("steps", "share", "taken"), [
    (40, 0.0, [40]),  # none: the weights after the last step
    (40, 0.5, [30, 40]),
    (40, 1.0, [10, 20, 30, 40]),
    (45, 0.56, [30, 40, 45]),  # the last one always
    (5, 0.6, [5]),
])
def test_the_mean_of_every_tenth_step_and_the_last(
    steps: int, share: float, taken: list[int]
) -> None:
    model, average = Weights(), WeightAverage(steps, share)
    run(model, average, range(steps))
    expected = sum(n**2 for n in taken) / len(taken)
    assert model.weight.tolist() == pytest.approx([expected] * 2)
    assert model.bias.item() == pytest.approx(2 * expected)
    assert model.places.tolist() == [0, 1, 2]
    assert average.state_dict() == {}  # nothing is left to go on with


def test_the_weights_stand_until_the_last_step() -> None:
    model, average = Weights(), WeightAverage(40, 1.0)
    run(model, average, range(39))
    assert model.weight.tolist() == [39**2] * 2
    assert average.mean["weight"].tolist() == pytest.approx([(10**2 + 20**2 + 30**2) / 3] * 2)


@pytest.mark.parametrize("stop", [5, 10, 25, 30, 44])
def test_a_run_that_was_stopped_ends_alike(stop: int) -> None:
    expected, again = Weights(), Weights()
    run(expected, WeightAverage(45, 0.8), range(45))
    first, second = WeightAverage(45, 0.8), WeightAverage(45, 0.8)
    run(again, first, range(stop))
    second.load_state_dict(first.state_dict(), again)
    run(again, second, range(stop, 45))
    assert torch.equal(again.weight, expected.weight) and torch.equal(again.bias, expected.bias)


def test_half_precision_is_averaged_in_float32() -> None:
    model, average = Weights().bfloat16(), WeightAverage(2 * EVERY, 1.0)
    run(model, average, range(EVERY))
    assert average.mean["weight"].dtype == torch.float32
    run(model, average, range(EVERY, 2 * EVERY))
    assert model.weight.dtype == torch.bfloat16 and model.weight.tolist() == [250.0] * 2


def test_what_is_kept_does_not_follow_the_model() -> None:
    model, average = Weights(), WeightAverage(40, 1.0)
    run(model, average, range(EVERY + 1))
    assert average.mean["weight"].tolist() == [100.0] * 2 and "places" not in average.mean


@pytest.mark.parametrize("now", [WeightAverage(50, 0.8), WeightAverage(45, 0.5)])
def test_a_mean_of_other_steps(now: WeightAverage) -> None:
    model, then = Weights(), WeightAverage(45, 0.8)
    run(model, then, range(20))
    with pytest.raises(InputError, match="averaged since optimizer step 9, and would be since"):
        now.load_state_dict(then.state_dict(), model)


def test_before_the_mean_begins_the_steps_may_change() -> None:
    model, then = Weights(), WeightAverage(45, 0.5)
    run(model, then, range(20))
    WeightAverage(90, 0.5).load_state_dict(then.state_dict(), model)


@pytest.mark.parametrize("mean", [{}, {"weight": torch.zeros(3), "bias": torch.zeros(())}])
def test_a_mean_of_another_model(mean: dict[str, torch.Tensor]) -> None:
    state = {"before": 9, "count": 1, "mean": mean}
    with pytest.raises(InputError, match=r"the mean of its weights: (missing|weight has)"):
        WeightAverage(45, 0.8).load_state_dict(state, Weights())
