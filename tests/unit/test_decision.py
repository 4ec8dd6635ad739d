"""Which tasks and experts answer, with which weights, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from moe.decision import choose_experts, choose_tasks, log_weights, route
from moe.decision import task_experts_matrix as experts_of

INF = math.inf


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


# --- ranking ----------------------------------------------------------------------------------


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


def test_topk_prefers_larger_scores_everywhere() -> None:
    torch.manual_seed(0)
    scores = torch.randn(30, 4)
    chosen = choose_experts(scores, torch.ones(30, 1).bool(), experts_of((4,)), 2)
    expected = F.one_hot(scores.topk(2).indices, 4).sum(1).bool()
    assert torch.equal(chosen, expected)
