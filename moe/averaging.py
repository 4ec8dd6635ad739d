"""The mean of the weights over the last part of training.

At a constant learning rate the weights wander around a place that is better than where they
stand at any step: their mean is nearer to it (Izmailov et al. 2018, "Averaging Weights Leads to
Wider Optima and Better Generalization", arXiv 1803.05407). It takes the place of a rate that
falls, and costs one model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moe.tensors import mismatch
from moe.types import InputError

EVERY = 10  # optimizer steps from one set of weights in the mean to the next


class WeightAverage:
    """Keeps the mean, and puts it into the model after the last step.

    Weights are kept in at least 32 bits on the model's device; whole numbers are left as they are.
    A validation before the last step sees the weights as they stand.

    Args:
        total_steps: Optimizer steps of the run.
        share: Of them, the last ones, over which the mean goes; 0 keeps nothing.
    """

    def __init__(self, total_steps: int, share: float) -> None:
        self.total_steps = total_steps
        self.before = total_steps - round(total_steps * share)
        self.count = 0
        self.mean: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, steps: int, model: nn.Module) -> None:
        """To be called after each step, when `steps` steps are made."""
        taken, is_last = steps - self.before, steps == self.total_steps
        if taken <= 0 or (taken % EVERY > 0 and not is_last):
            return
        self.count += 1
        for name, own in _floats(model).items():
            value = own.to(torch.promote_types(own.dtype, torch.float32))
            kept = self.mean.get(name, value).to(own.device)
            self.mean[name] = kept.lerp(value, 1 / self.count)
            if is_last:
                own.copy_(self.mean[name])
        if is_last:
            self.count, self.mean = 0, {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; empty while there is no mean."""
        if self.count == 0:
            return {}
        return {"before": self.before, "count": self.count, "mean": self.mean}

    def load_state_dict(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Takes up what `state_dict` gave.

        Raises:
            InputError: Its mean is of other steps or another model.
        """
        if not state:
            return
        before = state.get("before")
        if before != self.before:
            raise InputError(
                f"--resume: its weights are averaged since optimizer step {before}, and would be "
                f"since {self.before}: trainer.max_steps and optimizer.average of such a run "
                "cannot change"
            )
        mean = dict(state.get("mean", {}))
        found = mismatch(_floats(model), mean)
        if found is not None:
            raise InputError(f"--resume: the mean of its weights: {found}")
        self.count, self.mean = int(state.get("count", 1)), mean


def _floats(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers themselves, but for whole numbers, which never change."""
    return {name: own for name, own in model.state_dict().items() if own.is_floating_point()}
