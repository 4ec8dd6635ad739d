"""The gate: scores, choice of tasks and experts, weights, and what balances them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from moe.decision import choose_experts, choose_tasks, log_weights, route
from moe.decision import task_experts_matrix as experts_of
from moe.gate import CosineScores, Gate
from moe.losses import gate_sums, switch_balance

INF = math.inf


def linear_gate(weight: list[list[float]], bias: list[float], **changes: float) -> Gate:
    experts, dim = len(weight), len(weight[0])
    gate = Gate(dim=dim, num_experts=experts, kind="linear", **{"temperature": 1.0, **changes})
    gate.scores.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return gate


def own_requests(pooled_BD: Tensor) -> Tensor:
    return torch.arange(len(pooled_BD))


# --- scores -----------------------------------------------------------------------------------


def test_cosine_scores_by_hand() -> None:
    scores = CosineScores(dim=2, width=2, num_experts=3)
    scores.load_state_dict({
        "projection.weight": torch.eye(2), "projection.bias": torch.zeros(2),
        "prototypes": torch.tensor([[10.0, 0.0], [0.0, -0.1], [1.0, 1.0]]),
    })
    # (3, 4) has length 5: cosines 3/5, -4/5, and (3 + 4) / (5 * sqrt 2).
    expected = torch.tensor([[0.6, -0.8, 7 / (5 * math.sqrt(2))]])
    torch.testing.assert_close(scores(torch.tensor([[3.0, 4.0]])), expected)
    assert scores(torch.zeros(1, 2)).tolist() == [[0.0, 0.0, 0.0]]  # no direction, and no NaN


def test_cosine_logits_lie_within_one_over_temperature() -> None:
    torch.manual_seed(0)
    gate = Gate(dim=8, num_experts=5, kind="cosine", width=4, temperature=0.1).eval()
    pooled = 1000 * torch.randn(50, 8)
    logits = gate(pooled, own_requests(pooled))
    assert logits.shape == (50, 5)
    assert logits.abs().max() <= 10.0001
    assert logits.max() > 5 and logits.min() < -5


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("hidden", [0, 64])
def test_a_new_prototype_leaves_the_old_logits_bit_equal(batch_size: int, hidden: int) -> None:
    torch.manual_seed(0)
    old = Gate(dim=32, num_experts=5, kind="cosine", width=128, hidden=hidden).eval()
    new = Gate(dim=32, num_experts=6, kind="cosine", width=128, hidden=hidden).eval()
    state = old.state_dict()
    state["scores.prototypes"] = torch.cat([state["scores.prototypes"], torch.randn(1, 128)])
    state["selection_bias"] = torch.zeros(6)
    new.load_state_dict(state)
    pooled = torch.randn(batch_size, 32)
    requests = own_requests(pooled)
    assert torch.equal(new(pooled, requests)[:, :5], old(pooled, requests))


def test_temperature_divides_the_scores() -> None:
    pooled = torch.tensor([[2.0]])
    # 2 * 3 + 1 = 7 and 2 * -1 + 0 = -2, divided by 0.5.
    gate = linear_gate([[3.0], [-1.0]], [1.0, 0.0], temperature=0.5)
    assert gate(pooled, own_requests(pooled)).tolist() == [[14.0, -4.0]]


def test_noise_is_on_the_logits_and_in_training_only() -> None:
    torch.manual_seed(0)
    gate = linear_gate([[1.0], [2.0]], [0.0, 0.0], noise=0.5, temperature=0.1)
    pooled = torch.zeros(4000, 1)
    requests = own_requests(pooled)
    assert torch.equal(gate.eval()(pooled, requests), torch.zeros(4000, 2))
    noisy = gate.train()(pooled, requests)
    # 8000 draws: the standard error of their deviation is 0.5 / sqrt(16000) = 0.004.
    assert abs(noisy.std().item() - 0.5) < 0.02
    assert not torch.equal(gate(pooled, requests), noisy)
    gate.noise = 0.0
    assert torch.equal(gate(pooled, requests), torch.zeros(4000, 2))


def test_windows_of_one_request_are_averaged() -> None:
    gate = linear_gate([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0]).eval()
    pooled = torch.tensor([[1.0, 8.0], [5.0, 5.0], [3.0, 2.0], [2.0, 5.0]])
    # Request 1 has windows 0, 2 and 3: (1 + 3 + 2) / 3 = 2 and (8 + 2 + 5) / 3 = 5.
    logits = gate(pooled, torch.tensor([1, 0, 1, 1]))
    assert logits.tolist() == [[2.0, 5.0], [5.0, 5.0], [2.0, 5.0], [2.0, 5.0]]


def test_autocast_leaves_the_gate_in_float32() -> None:
    torch.manual_seed(0)
    gate = Gate(dim=32, num_experts=4, width=16).eval()
    pooled = torch.randn(3, 32)
    expected = gate(pooled, own_requests(pooled))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(gate(pooled, own_requests(pooled)), expected)
    halved = gate(pooled.bfloat16(), own_requests(pooled))
    assert halved.dtype == torch.float32


# --- choice -----------------------------------------------------------------------------------


def test_the_task_with_the_largest_mass_wins_over_that_of_the_best_expert() -> None:
    # Task 0 has three experts of 0.2, together 0.6; task 1 has the best one, 0.4.
    logits = torch.tensor([[0.2, 0.2, 0.2, 0.4]]).log()
    routing = route(logits, experts_of((3, 1)), top_k=1)
    torch.testing.assert_close(routing.task_mass_BT, torch.tensor([[0.6, 0.4]]))
    assert routing.tasks_BT.tolist() == [[True, False]]
    assert not routing.chosen_BE[0, 3]


@pytest.mark.parametrize(("threshold", "expected"), [
    (None, [False, True, False]), (0.5, [False, True, False]), (0.3, [False, True, False]),
    (0.25, [True, True, False]), (0.1, [True, True, True]),
])
def test_multi_task_threshold(threshold: float | None, expected: list[bool]) -> None:
    mass = torch.tensor([[0.3, 0.45, 0.25]])  # 0.3 and 0.25 are not above themselves
    assert choose_tasks(mass, torch.ones(1, 3).bool(), threshold).tolist() == [expected]


@pytest.mark.parametrize(("allowed", "threshold", "expected"), [
    ([True, False, True], None, [True, False, False]),
    ([False, False, True], None, [False, False, True]),
    ([True, False, True], 0.2, [True, False, True]),
])
def test_only_allowed_tasks_are_chosen(
    allowed: list[bool], threshold: float | None, expected: list[bool]
) -> None:
    mass = torch.tensor([[0.3, 0.45, 0.25]])
    assert choose_tasks(mass, torch.tensor([allowed]), threshold).tolist() == [expected]


@pytest.mark.parametrize(("top_k", "expected"), [
    (1, [0, 1, 0, 0, 0, 0]), (2, [1, 1, 0, 0, 0, 0]), (3, [1, 1, 1, 0, 0, 0]),
    (9, [1, 1, 1, 0, 0, 0]),
])
def test_top_k_experts_of_the_chosen_task(top_k: int, expected: list[int]) -> None:
    scores = torch.tensor([[2.0, 3.0, 1.0, 9.0, 8.0, 7.0]])
    tasks = torch.tensor([[True, False]])
    assert choose_experts(scores, tasks, experts_of((3, 3)), top_k).int().tolist() == [expected]


def test_top_k_experts_of_every_chosen_task() -> None:
    scores = torch.tensor([[2.0, 3.0, 1.0, 9.0], [3.0, 2.0, 1.0, -9.0], [0.0, 1.0, 2.0, 0.0]])
    tasks = torch.tensor([[True, True], [False, True], [True, False]])
    assert choose_experts(scores, tasks, experts_of((3, 1)), 1).int().tolist() == [
        [0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 1, 0],
    ]


def test_route_by_hand() -> None:
    g = torch.tensor([[0.1, 0.3, 0.2, 0.4], [0.4, 0.1, 0.3, 0.2]])
    tasks = torch.tensor([[True, True], [True, False]])
    routing = route(g.log() + 5, experts_of((3, 1)), tasks_BT=tasks, top_k=2)
    torch.testing.assert_close(routing.probabilities_BE, g)
    torch.testing.assert_close(routing.task_mass_BT, torch.tensor([[0.6, 0.4], [0.8, 0.2]]))
    # Row 0: 0.3 and 0.2 of task 0, 0.4 alone in task 1. Row 1: 0.4 and 0.3.
    weights = torch.tensor([[0.0, 3 / 5, 2 / 5, 1.0], [4 / 7, 0.0, 3 / 7, 0.0]])
    torch.testing.assert_close(routing.log_weights_BE.exp(), weights)
    assert torch.equal(routing.chosen_BE, weights > 0)


def test_given_tasks_are_not_second_guessed() -> None:
    logits = torch.tensor([[9.0, 0.0]])
    routing = route(logits, experts_of((1, 1)), tasks_BT=torch.tensor([[False, True]]), top_k=1)
    assert routing.tasks_BT.tolist() == routing.chosen_BE.tolist() == [[False, True]]
    assert routing.task_mass_BT[0, 0] > 0.99  # the mass still says what the gate thought


def test_allowed_tasks_in_route() -> None:
    logits = torch.tensor([[9.0, 0.0]])
    routing = route(logits, experts_of((1, 1)), allowed_BT=torch.tensor([[False, True]]), top_k=1)
    assert routing.tasks_BT.tolist() == [[False, True]]


# --- weights ----------------------------------------------------------------------------------


def test_weights_sum_to_one_in_each_chosen_task() -> None:
    torch.manual_seed(0)
    logits = 5 * torch.randn(20, 7)
    tasks = torch.rand(20, 3) < 0.5
    routing = route(logits, experts_of((2, 1, 4)), tasks_BT=tasks, top_k=3)
    blocks = routing.log_weights_BE.exp().split((2, 1, 4), -1)
    sums = torch.stack([block.sum(-1) for block in blocks], -1)
    torch.testing.assert_close(sums, tasks.float())


def test_gradient_is_finite_where_a_task_is_not_chosen() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    chosen = torch.tensor([[True, True, False]])
    weights = log_weights(logits.log_softmax(-1), chosen, experts_of((2, 1)))
    assert weights[0, 2] == -INF
    with torch.autograd.set_detect_anomaly(True):  # nor is there a NaN on the way
        weights[0, 0].backward()
    # d log w_0 = 1 - w_0 and -w_1 with w = softmax(1, 2): w_1 = e / (1 + e) = 0.7311.
    expected = torch.tensor([[1 - 0.26894, -0.73106, 0.0]])
    torch.testing.assert_close(logits.grad, expected, atol=1e-5, rtol=0)


def test_weights_of_hopeless_tasks_are_finite() -> None:
    # exp(-200) is 0 in float32: G_0 underflows, w does not.
    routing = route(torch.tensor([[-200.0, -201.0, 0.0]]), experts_of((2, 1)),
                    tasks_BT=torch.tensor([[True, False]]), top_k=2)
    expected = torch.tensor([1 / (1 + math.exp(-1)), 1 / (1 + math.exp(1))])
    torch.testing.assert_close(routing.log_weights_BE[0, :2].exp(), expected)


# --- balance ----------------------------------------------------------------------------------


def test_selection_bias_changes_the_choice_alone() -> None:
    logits = torch.tensor([[1.0, 0.0, 0.5]])
    bias = torch.tensor([-5.0, 0.0, 3.0])
    plain, biased = (
        route(logits, experts_of((2, 1)), top_k=1, selection_bias_E=b) for b in (None, bias)
    )
    assert plain.chosen_BE.tolist() == [[True, False, False]]
    assert biased.chosen_BE.tolist() == [[False, True, False]]  # and the task did not change
    assert torch.equal(biased.task_mass_BT, plain.task_mass_BT)
    assert torch.equal(biased.probabilities_BE, plain.probabilities_BE)
    both = route(logits, experts_of((2, 1)), top_k=2, selection_bias_E=bias)
    w_0 = math.e / (math.e + 1)  # of logits 1 and 0; the bias has no part in it
    torch.testing.assert_close(both.log_weights_BE.exp(), torch.tensor([[w_0, 1 - w_0, 0.0]]))


def test_update_bias_by_hand() -> None:
    gate = linear_gate([[0.0]] * 6, [0.0] * 6)
    # Task 0: mean (8 + 2 + 2) / 3 = 4. Task 1: one expert is its own mean. Task 2: mean 3, even.
    load = torch.tensor([8, 2, 2, 7, 3, 3])
    gate.update_bias(load, (3, 1, 2), 0.25)
    # -1/4, 1/4, 1/4, less their mean 1/12: a third of -1, and a sixth. An added expert has 0.
    assert gate.selection_bias.tolist() == pytest.approx([-1 / 3, 1 / 6, 1 / 6, 0.0, 0.0, 0.0])
    gate.update_bias(load.float(), (3, 1, 2), 0.5)
    assert gate.selection_bias.tolist() == pytest.approx([-1.0, 0.5, 0.5, 0.0, 0.0, 0.0])
    assert "selection_bias" in gate.state_dict()
    assert not gate.selection_bias.requires_grad


def loads_after_collapse(kind: str, top_k: int, steps: int = 300) -> Tensor:
    """Share of each of four experts after training a gate that starts with +5 on the first."""
    torch.manual_seed(0)
    gate = linear_gate(torch.randn(4, 8).mul(0.3).tolist(), [5.0, 0.0, 0.0, 0.0])
    optimizer = torch.optim.SGD(gate.parameters(), lr=1.0)
    experts_TE = torch.ones(1, 4, dtype=torch.bool)
    held_out = torch.randn(1000, 8)

    def decide(pooled_BD: Tensor):
        logits = gate(pooled_BD, own_requests(pooled_BD))
        tasks = torch.ones(len(pooled_BD), 1, dtype=torch.bool)
        return route(logits, experts_of((4,)), tasks_BT=tasks, top_k=top_k,
                     selection_bias_E=gate.selection_bias)

    for _ in range(steps):
        routing = decide(torch.randn(64, 8))
        task_ids = torch.zeros(64, dtype=torch.long)
        sums = gate_sums(routing, routing.chosen_BE, task_ids, experts_TE)
        if kind == "switch":
            optimizer.zero_grad()
            switch_balance(sums, experts_TE).sum().backward()
            optimizer.step()
        elif kind == "bias":
            gate.update_bias(sums.chosen_E, (4,), 0.05)
    chosen = decide(held_out).chosen_BE.float().sum(0)
    return chosen / chosen.sum()


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("kind", ["none", "switch", "bias"])
def test_balance_out_of_a_collapse(kind: str, top_k: int) -> None:
    loads = loads_after_collapse(kind, top_k)
    assert loads.sum() == pytest.approx(1.0)
    if kind == "none":  # the first expert has every row: all pairs, or half of them
        assert loads[0] > 0.95 / top_k
    else:  # a fair load is 1/4
        assert loads.min() >= 0.125


def test_topk_prefers_larger_scores_everywhere() -> None:
    torch.manual_seed(0)
    scores = torch.randn(30, 4)
    chosen = choose_experts(scores, torch.ones(30, 1).bool(), experts_of((4,)), 2)
    expected = F.one_hot(scores.topk(2).indices, 4).sum(1).bool()
    assert torch.equal(chosen, expected)
