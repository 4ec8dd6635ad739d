"""The terms of the loss, against arithmetic, against formulas, and against Mixtral's."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from moe.decision import route
from moe.decision import task_experts_matrix as experts_of
from moe.losses import (
    GateSums,
    balance_loss,
    gate_sums,
    mixture_loss,
    prior_divergence,
    routing_loss,
    switch_balance,
    z_loss,
)
from moe.types import Batch, Routing

INF = math.inf
# Experts 0 and 1 are of task 0, expert 2 of task 1.
TWO_AND_ONE = torch.tensor([[True, True, False], [False, False, True]])


def route_own(logits_BE: Tensor, task_ids: Tensor, sizes: tuple[int, ...], top_k: int) -> Routing:
    own_BT = torch.nn.functional.one_hot(task_ids, len(sizes)).bool()
    return route(logits_BE, experts_of(sizes), tasks_BT=own_BT, top_k=top_k)


def sums_of(*, chosen: Any, shares: Any, mass: Any, rows: Any) -> GateSums:
    chosen_E, shares_E, mass_T, rows_T = (
        torch.as_tensor(v, dtype=torch.float32) for v in (chosen, shares, mass, rows)
    )
    return GateSums(chosen_E=chosen_E, shares_E=shares_E, mass_T=mass_T, rows_T=rows_T)


# --- answer -----------------------------------------------------------------------------------


def test_mixture_loss_by_hand() -> None:
    log_weights = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]).log()
    likelihood = torch.tensor([[0.8, 0.4, 0.0], [0.0, 0.0, 0.1]]).log()
    # 0.25 * 0.8 + 0.75 * 0.4 = 0.5; and one expert alone is the plain -log 0.1.
    expected = torch.tensor([math.log(2), math.log(10)])
    torch.testing.assert_close(mixture_loss(log_weights, likelihood), expected)


def test_gradient_at_the_gate_is_weight_minus_responsibility() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 4, requires_grad=True)
    tasks = torch.ones(5, 1, dtype=torch.bool)
    routing = route(logits, experts_of((4,)), tasks_BT=tasks, top_k=2)
    likelihood = torch.randn(5, 4).masked_fill(~routing.chosen_BE, -INF)
    mixture_loss(routing.log_weights_BE, likelihood).sum().backward()
    w = routing.log_weights_BE.detach().exp()
    joint = w * likelihood.exp()
    responsibility = joint / joint.sum(-1, keepdim=True)
    torch.testing.assert_close(logits.grad, w - responsibility)
    assert responsibility[~routing.chosen_BE].abs().max() == 0  # nothing moves outside S


def test_with_one_expert_the_answer_gives_the_gate_no_gradient() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]], requires_grad=True)
    routing = route(logits, experts_of((3,)), tasks_BT=torch.tensor([[True]]), top_k=1)
    loss = mixture_loss(routing.log_weights_BE, torch.tensor([[-INF, -0.7, -INF]]))
    torch.testing.assert_close(loss, torch.tensor([0.7]))
    assert not loss.requires_grad


# --- routing and z ----------------------------------------------------------------------------


def test_routing_loss_by_hand() -> None:
    logits = torch.tensor([[0.1, 0.3, 0.6]]).log().repeat(3, 1) + 7
    target = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    # G_0 = 0.1 + 0.3 and G_1 = 0.6; the third row needs both.
    both = -0.5 * math.log(0.4) - 0.5 * math.log(0.6)
    expected = torch.tensor([-math.log(0.4), -math.log(0.6), both])
    torch.testing.assert_close(routing_loss(logits, target, TWO_AND_ONE), expected)


@pytest.mark.parametrize(("target", "expected"), [
    # dL/dz_e = g_e - y_t g_e / G_t: g_e less the part of the target that e has in its task,
    # 1/4 and 3/4 of it for experts 0 and 1. Over a task that is G_t - y_t.
    ([1.0, 0.0], [0.1 - 0.25, 0.3 - 0.75, 0.6]),
    ([0.5, 0.5], [0.1 - 0.125, 0.3 - 0.375, 0.6 - 0.5]),
    ([0.4, 0.6], [0.0, 0.0, 0.0]),  # where the mass is the target nothing moves
    ([0.0, 0.0], [0.0, 0.0, 0.0]),
])
def test_gradient_of_the_routing_loss_is_mass_minus_target(
    target: list[float], expected: list[float]
) -> None:
    logits = torch.tensor([[0.1, 0.3, 0.6]]).log().requires_grad_()
    routing_loss(logits, torch.tensor([target]), TWO_AND_ONE).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([expected]), atol=1e-6, rtol=0)


def test_routing_loss_is_finite_where_the_mass_underflows() -> None:
    logits = torch.tensor([[-300.0, -300.0, 0.0]])
    # G_0 = 2 exp(-300), far below float32: 300 - log 2.
    expected = torch.tensor([300 - math.log(2)])
    target = torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(routing_loss(logits, target, TWO_AND_ONE), expected)


def test_z_loss_by_hand() -> None:
    logits = torch.tensor([[1.0, 3.0], [0.5, 0.5]]).log()
    torch.testing.assert_close(z_loss(logits), torch.tensor([math.log(4) ** 2, 0.0]))


# --- sums -------------------------------------------------------------------------------------


def test_gate_sums_by_hand() -> None:
    g = torch.tensor([[0.2, 0.6, 0.2], [0.1, 0.1, 0.8], [0.3, 0.1, 0.6]])
    task_ids = torch.tensor([0, 1, 0])
    routing = route_own(g.log(), task_ids, (2, 1), 2)  # in training both experts of task 0 run
    # At inference row 0 takes expert 1 and row 2 expert 0; expert 2 is not of row 2's task.
    chosen = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 1]]).bool()
    sums = gate_sums(routing, chosen, task_ids, TWO_AND_ONE)
    assert sums.chosen_E.tolist() == [1.0, 1.0, 1.0]
    # Row 0: 0.2 / 0.8 and 0.6 / 0.8; row 2: 0.3 / 0.4 and 0.1 / 0.4; row 1: 0.8 / 0.8.
    torch.testing.assert_close(sums.shares_E, torch.tensor([0.25 + 0.75, 0.75 + 0.25, 1.0]))
    # G_0 = 0.8 + 0.2 + 0.4 over all rows, G_1 = 0.2 + 0.8 + 0.6.
    torch.testing.assert_close(sums.mass_T, torch.tensor([1.4, 1.6]))
    assert sums.rows_T.tolist() == [2.0, 1.0]


def test_gate_sums_are_finite_where_the_mass_underflows() -> None:
    logits = torch.tensor([[-300.0, -300.0, 0.0]])
    routing = route_own(logits, torch.tensor([0]), (2, 1), 1)
    sums = gate_sums(routing, routing.chosen_BE, torch.tensor([0]), TWO_AND_ONE)
    assert sums.shares_E.tolist() == [0.5, 0.5, 0.0]


def test_rows_without_a_task_do_not_count() -> None:
    g = torch.tensor([[0.2, 0.6, 0.2], [0.7, 0.1, 0.2], [0.1, 0.1, 0.8]])
    logits = g.log().requires_grad_()
    tasks = torch.tensor([[True, False], [False, False], [False, True]])
    routing = route(logits, experts_of((2, 1)), tasks_BT=tasks, top_k=1)
    # That row 1 chose expert 0, or expert 2, must not matter.
    chosen = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 0, 1]]).bool()
    sums = gate_sums(routing, chosen, torch.tensor([0, -1, 1]), TWO_AND_ONE)
    assert sums.chosen_E.tolist() == [0.0, 1.0, 1.0]
    assert sums.rows_T.tolist() == [1.0, 1.0]
    torch.testing.assert_close(sums.shares_E, torch.tensor([0.25, 0.75, 1.0]))
    torch.testing.assert_close(sums.mass_T, torch.tensor([0.8 + 0.2, 0.2 + 0.8]))
    (sums.shares_E[0] + sums.mass_T[1]).backward()
    assert logits.grad[[0, 2]].abs().min(0).values.max() > 0.1
    assert torch.equal(logits.grad[1], torch.zeros(3))


def test_rows_without_a_task_alone_give_zeros() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    nothing = torch.zeros(2, 2, dtype=torch.bool)
    routing = route(logits, experts_of((2, 1)), tasks_BT=nothing, top_k=1)
    sums = gate_sums(routing, routing.chosen_BE, torch.tensor([-1, -1]), TWO_AND_ONE)
    for values in (sums.chosen_E, sums.shares_E, sums.mass_T, sums.rows_T):
        assert values.abs().max() == 0
    # A first micro-batch may hold nothing else: no balance yet, and no NaN.
    loss = balance_loss(sums, torch.tensor([4, 4]), TWO_AND_ONE, switch=1.0, prior=1.0)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(logits.grad, torch.zeros(2, 3))


def test_sums_add_up_and_detach() -> None:
    part = sums_of(chosen=[1, 2, 3], shares=[1, 1, 1], mass=[2, 1], rows=[2, 1])
    grown = replace(part, shares_E=part.shares_E.clone().requires_grad_(),
                    mass_T=part.mass_T.clone().requires_grad_())
    total = grown + part
    for name, expected in (("chosen_E", [2, 4, 6]), ("shares_E", [2, 2, 2]), ("mass_T", [4, 2]),
                           ("rows_T", [4, 2])):
        assert getattr(total, name).tolist() == expected
        assert not getattr(total.detach(), name).requires_grad
    assert total.shares_E.requires_grad and total.mass_T.requires_grad


def test_padding_never_counts(tiny_model, hand_batch: Batch) -> None:
    model = tiny_model().eval()

    def statistics(batch: Batch) -> GateSums:
        routing = model(batch, tasks_BT=model.own_tasks(batch)).routing
        return gate_sums(routing, routing.chosen_BE, batch.task_ids, model.task_experts_TE)

    pad = torch.nn.functional.pad
    wider = replace(hand_batch, **{
        name: pad(getattr(hand_batch, name), (0, 7))
        for name in ("input_ids", "attention_mask", "context_mask")
    })
    plain, padded = statistics(hand_batch), statistics(wider)
    assert torch.equal(plain.chosen_E, padded.chosen_E)
    assert torch.equal(plain.rows_T, padded.rows_T)
    torch.testing.assert_close(padded.shares_E, plain.shares_E, atol=1e-5, rtol=0)
    torch.testing.assert_close(padded.mass_T, plain.mass_T, atol=1e-5, rtol=0)


# --- balance ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("chosen", "shares", "expected"), [
    ([5, 5, 9], [5, 5, 9], 1.0),     # balanced: 2 * (0.5 * 0.5 + 0.5 * 0.5)
    ([10, 0, 9], [10, 0, 9], 2.0),   # collapsed: 2 * 1 * 1
    ([10, 10, 9], [7, 3, 9], 1.0),   # both chosen (K = 2): 2 * (0.5 * 0.7 + 0.5 * 0.3)
    ([8, 2, 9], [6, 4, 9], 1.12),    # 2 * (0.8 * 0.6 + 0.2 * 0.4)
    ([2, 8, 9], [6, 4, 9], 0.88),    # 2 * (0.2 * 0.6 + 0.8 * 0.4): load against preference
])
def test_switch_balance_by_hand(chosen: list, shares: list, expected: float) -> None:
    sums = sums_of(chosen=chosen, shares=shares, mass=[10, 9], rows=[10, 9])
    # A task of one expert is always balanced.
    balance = switch_balance(sums, TWO_AND_ONE)
    torch.testing.assert_close(balance, torch.tensor([expected, 1.0]))


def test_switch_balance_of_a_task_without_rows() -> None:
    sums = sums_of(chosen=[0, 0, 3], shares=[0, 0, 3], mass=[0, 3], rows=[0, 3])
    assert switch_balance(sums, TWO_AND_ONE).tolist() == [1.0, 1.0]


def test_load_carries_no_gradient_and_shares_do() -> None:
    sums = sums_of(chosen=[8, 2, 9], shares=[6, 4, 9], mass=[10, 9], rows=[10, 9])
    chosen_E, shares_E = (t.requires_grad_() for t in (sums.chosen_E, sums.shares_E))
    switch_balance(sums, TWO_AND_ONE)[0].backward()
    assert chosen_E.grad is None
    # d/d share_e of 2 * sum f_e share_e / 10.
    torch.testing.assert_close(shares_E.grad, torch.tensor([0.16, 0.04, 0.0]))


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_switch_balance_is_mixtrals_divided_by_k(top_k: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(40, 5, requires_grad=True)
    expected = load_balancing_loss_func((logits,), num_experts=5, top_k=top_k) / top_k
    expected_grad, = torch.autograd.grad(expected, logits)
    one_task, task_ids = torch.ones(1, 5, dtype=torch.bool), torch.zeros(40, dtype=torch.long)
    routing = route_own(logits, task_ids, (5,), top_k)
    sums = gate_sums(routing, routing.chosen_BE, task_ids, one_task)
    actual = switch_balance(sums, one_task)[0]
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, logits)[0], expected_grad)


@pytest.mark.parametrize(("rows", "mass", "expected"), [
    ([3, 1], [3, 1], 0.0),
    ([3, 1], [2, 2], 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)),
    ([4, 0], [2, 2], math.log(2)),            # 0 log 0 = 0
    ([4, 0], [4, 0], 0.0),
])
def test_prior_divergence_by_hand(rows: list, mass: list, expected: float) -> None:
    sums = sums_of(chosen=[0, 0, 0], shares=[0, 0, 0], mass=mass, rows=rows)
    assert prior_divergence(sums).item() == pytest.approx(expected, abs=1e-6)


def test_prior_divergence_is_finite_at_mass_zero() -> None:
    sums = sums_of(chosen=[0, 0, 0], shares=[0, 0, 0], mass=[4, 0], rows=[2, 2])
    # 0.5 log(0.5 / 1) + 0.5 log(0.5 / 1e-30)
    expected = 0.5 * math.log(0.5) + 0.5 * math.log(0.5e30)
    assert prior_divergence(sums).item() == pytest.approx(expected, rel=1e-5)


def test_balance_loss_by_hand() -> None:
    sums = sums_of(chosen=[8, 2, 10], shares=[6, 4, 10], mass=[10, 10], rows=[10, 10])
    step_rows = torch.tensor([20, 20])
    only = {"switch": 0.0, "prior": 0.0}
    # Half of the rows are seen; task 0 is at 1.12, and task 1 with its one expert is left out.
    switch = balance_loss(sums, step_rows, TWO_AND_ONE, **{**only, "switch": 3.0})
    assert switch.item() == pytest.approx(3.0 * 0.5 * 1.12)
    skewed = replace(sums, mass_T=torch.tensor([15.0, 5.0]))
    # KL of (1/2, 1/2) against (3/4, 1/4), half seen.
    divergence = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    prior = balance_loss(skewed, step_rows, TWO_AND_ONE, **{**only, "prior": 5.0})
    assert prior.item() == pytest.approx(5.0 * 0.5 * divergence)


def test_balance_loss_is_the_mean_over_shared_tasks_of_the_step() -> None:
    experts = torch.block_diag(*[torch.ones(1, 2)] * 3).bool()
    sums = sums_of(chosen=[4, 0, 2, 2, 0, 0], shares=[4, 0, 2, 2, 0, 0], mass=[4, 4, 0],
                   rows=[4, 4, 0])
    # Task 0 collapsed at 2.0, task 1 balanced at 1.0, task 2 has no rows in this step.
    loss = balance_loss(sums, torch.tensor([4, 4, 0]), experts, switch=1.0, prior=0.0)
    assert loss.item() == pytest.approx(1.5)
    # Where task 2 has rows later in the step, the mean is over three.
    loss = balance_loss(sums, torch.tensor([4, 4, 4]), experts, switch=1.0, prior=0.0)
    assert loss.item() == pytest.approx(3.0 / 3)


@pytest.mark.parametrize("terms", [{"switch": 1.0, "prior": 0.0}, {"switch": 0.0, "prior": 1.0}])
def test_gradients_of_equal_micro_batches_add_up_to_those_of_one_batch(terms: dict) -> None:
    torch.manual_seed(0)
    micro = torch.randn(8, 3)
    micro_tasks = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1])
    step_rows = torch.tensor([15, 9])

    def sums(logits: Tensor, tasks: Tensor) -> GateSums:
        routing = route_own(logits, tasks, (2, 1), 1)
        return gate_sums(routing, routing.chosen_BE, tasks, TWO_AND_ONE)

    large = micro.repeat(3, 1).requires_grad_()
    balance_loss(sums(large, micro_tasks.repeat(3)), step_rows, TWO_AND_ONE, **terms).backward()
    earlier: GateSums | None = None
    gradients = []
    for _ in range(3):
        logits = micro.clone().requires_grad_()
        so_far = sums(logits, micro_tasks)
        so_far = so_far if earlier is None else earlier + so_far
        balance_loss(so_far, step_rows, TWO_AND_ONE, **terms).backward()
        gradients.append(logits.grad)
        earlier = so_far.detach()
    assert large.grad.abs().max() > 1e-4
    torch.testing.assert_close(torch.cat(gradients), large.grad)
