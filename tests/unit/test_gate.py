"""The gate: scores, and what balances them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from moe.decision import route
from moe.decision import task_experts_matrix as experts_of
from moe.gate import CosineScores, Gate
from moe.losses import gate_sums, switch_balance


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


# --- balance ----------------------------------------------------------------------------------


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
