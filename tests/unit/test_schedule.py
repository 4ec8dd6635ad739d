"""Parameter groups by name, and the rate over the steps."""

from __future__ import annotations

import pytest
from torch import nn

from moe.config import OptimizerConfig
from moe.encoder import freeze
from moe.schedule import parameter_groups, rate_factor

CONFIG = OptimizerConfig(encoder_lr=1e-5, expert_lr=2e-4, gate_lr=3e-3, weight_decay=0.1)


def grouped_names(model: nn.Module, config: OptimizerConfig = CONFIG) -> dict[str, list[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["name"]: [names[id(p)] for p in group["params"]]
            for group in parameter_groups(model, config)}


def test_groups_cover_every_trainable_parameter_once(tiny_model) -> None:
    model = tiny_model()
    groups = grouped_names(model)
    assert sorted(n for group in groups.values() for n in group) == sorted(
        name for name, _ in model.named_parameters())
    assert set(groups) == {f"{part}{decay}" for part in ("encoder", "experts", "gate")
                           for decay in ("", "_no_decay")}
    for group, names in groups.items():
        assert all(name.split(".")[0] == group.split("_")[0] for name in names)


def test_only_matrices_are_decayed(tiny_model) -> None:
    groups = grouped_names(tiny_model(gate={"hidden": 0}))
    assert groups["gate"] == ["gate.scores.projection.weight"]
    assert set(groups["gate_no_decay"]) == {"gate.scores.projection.bias", "gate.scores.prototypes"}
    for part in ("encoder", "experts"):
        assert all(name.endswith(".weight") and "norm" not in name.lower() and
                   "embeddings" not in name for name in groups[part])
        assert all(name.endswith(".bias") or "norm" in name.lower() or "embeddings" in name
                   for name in groups[f"{part}_no_decay"])
    assert len(groups["encoder"]) == 2 * 6  # four of attention, two of the feed-forward


def test_rates_and_decay_of_the_groups(tiny_model) -> None:
    groups = {group["name"]: group for group in parameter_groups(tiny_model(), CONFIG)}
    rates = {"encoder": 1e-5, "experts": 2e-4, "gate": 3e-3}
    for part, rate in rates.items():
        assert (groups[part]["lr"], groups[part]["weight_decay"]) == (rate, 0.1)
        plain = groups[f"{part}_no_decay"]
        assert (plain["lr"], plain["weight_decay"]) == (rate, 0.0)


def test_frozen_parameters_are_in_no_group(tiny_model) -> None:
    model = tiny_model()
    freeze(model.encoder, 1)
    names = [n for group in grouped_names(model).values() for n in group]
    assert sorted(names) == sorted(n for n, p in model.named_parameters() if p.requires_grad)
    assert not any("layer.0." in name for name in names)
    freeze(model.encoder, "all")
    assert set(grouped_names(model)) == {"experts", "experts_no_decay", "gate", "gate_no_decay"}


@pytest.mark.parametrize(("schedule", "expected"), [
    # 20 steps, 4 of warm-up: fifths up to the peak at step 4, then 16 steps down.
    ("linear", {0: 1 / 5, 1: 2 / 5, 3: 4 / 5, 4: 1.0, 8: 3 / 4, 12: 1 / 2, 19: 1 / 16, 20: 0.0}),
    # (1 + cos(pi x)) / 2 at x = 0, 1/4, 1/2, 1: cos(pi / 4) = 0.70711.
    ("cosine", {0: 1 / 5, 3: 4 / 5, 4: 1.0, 8: 0.853553, 12: 0.5, 20: 0.0}),
    ("constant", {0: 1 / 5, 3: 4 / 5, 4: 1.0, 12: 1.0, 20: 1.0}),
])
def test_rate_factor_by_hand(schedule, expected: dict[int, float]) -> None:
    config = OptimizerConfig(schedule=schedule, warmup=0.2)
    for step, factor in expected.items():
        assert rate_factor(step, 20, config) == pytest.approx(factor, abs=1e-6), step


def test_rate_factor_stays_within_zero_and_one() -> None:
    for warmup in (0.0, 0.06, 0.5, 1.0):
        for schedule in ("linear", "cosine", "constant"):
            config = OptimizerConfig(schedule=schedule, warmup=warmup)
            for total in (1, 2, 7, 100):
                factors = [rate_factor(step, total, config) for step in range(total + 5)]
                assert all(0 <= factor <= 1 for factor in factors)
                assert factors[0] > 0
    assert rate_factor(0, 100, OptimizerConfig(warmup=0.0)) == 1.0
    assert rate_factor(500, 100, OptimizerConfig(warmup=0.0)) == 0.0
