"""Parameter groups by name, and the learning rate over the steps."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from moe.config import OptimizerConfig


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups `encoder`, `experts`, `gate`, each with and without weight decay.

    Biases, norms, embeddings and prototypes are not decayed: their scale carries no capacity.
    """
    rates = {"encoder": config.encoder_lr, "experts": config.expert_lr, "gate": config.gate_lr}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and "embeddings" not in name and "prototypes" not in name
            groups.setdefault((name.split(".")[0], decayed), []).append(parameter)
    return [
        {
            "name": part if decayed else f"{part}_no_decay",
            "params": parameters,
            "lr": rates[part],
            "weight_decay": config.weight_decay if decayed else 0.0,
        }
        for (part, decayed), parameters in groups.items()
    ]


def rate_factor(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Factor in [0, 1] on the peak learning rate of optimizer step `step`, counted from 0."""
    warmup = round(config.warmup * total_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    if config.schedule == "linear":
        return 1 - progress
    if config.schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1.0
