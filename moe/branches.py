"""The last part of training, run several times from one state, and the mean of its ends.

Runs that part from a common state end in one basin of the loss (Frankle et al. 2020, arXiv
1912.05671), where the mean of their weights answers about as well as the mean of their answers
would, and costs one model (Wortsman et al. 2022, "model soups", arXiv 2203.05482). So `branches`
counts steps by where they stand on the way of one run: the learning rate stays at its peak up to
the common state, and falls in each branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moe.config import OptimizerConfig
from moe.tensors import mismatch
from moe.types import InputError

Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class BranchPlan:
    """Which optimizer steps belong to what.

    Attributes:
        stem: Steps before the branches, 0 for one; up to there the rates stay at their peak.
        length: Steps of each branch.
        count: Branches, one after the other.
    """

    stem: int
    length: int
    count: int

    @classmethod
    def of(cls, config: OptimizerConfig, total_steps: int) -> BranchPlan:
        """All steps of a run; the stem takes what does not divide.

        Raises:
            InputError: There are fewer steps than branches.
        """
        count = config.branches
        if total_steps < count:
            raise InputError(
                f"optimizer.branches is {count}, and training has {total_steps} steps: raise "
                "trainer.max_steps, or set optimizer.branches to 1"
            )
        stem = config.stem if count > 1 else 0.0
        length = min(max(round(total_steps * (1 - stem) / count), 1), total_steps // count)
        return cls(stem=total_steps - count * length, length=length, count=count)

    @property
    def way(self) -> int:
        """Steps from the first one to the end of any branch."""
        return self.stem + self.length

    def position(self, step: int) -> int:
        """How far on its way the step with the number `step`, counted from 0, is."""
        if step < self.way:
            return step
        if step >= self.stem + self.count * self.length:
            return self.way
        return self.stem + (step - self.stem) % self.length

    def ended(self, steps: int) -> int:
        """The number, from 1, of the branch that ends with the last of `steps` steps; else 0."""
        branch, rest = divmod(steps - self.stem, self.length)
        return branch if rest == 0 and branch > 0 else 0


class Branches:
    """Goes back to the end of the stem before each branch, and to the mean after the last one.

    AdamW's moments are not taken back: they are means over many steps, which go on. Weights are
    kept on the CPU. A validation at the end of a branch sees that branch, the last one the mean.

    Args:
        plan: Of the run; with one branch nothing is kept or changed.
    """

    def __init__(self, plan: BranchPlan) -> None:
        self.plan = plan
        self.stem: Weights = {}
        self.mean: Weights = {}

    def before(self, steps: int, model: nn.Module) -> None:
        """To be called before a step, when `steps` steps are made."""
        if self.plan.count == 1:
            return
        if steps == self.plan.stem:
            self.stem = _copy(model)
        elif self.plan.ended(steps):
            _put(self.stem, model)

    def after(self, steps: int, model: nn.Module) -> None:
        """To be called after a step, when `steps` steps are made."""
        branch = self.plan.ended(steps)
        if self.plan.count == 1 or not branch:
            return
        own = _copy(model)
        self.mean = {k: v.lerp(own[k], 1 / branch) for k, v in (self.mean or own).items()}
        if branch == self.plan.count:
            _put(self.mean, model)
            self.stem, self.mean = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; empty with one branch."""
        if self.plan.count == 1:
            return {}
        return {"plan": asdict(self.plan), "stem": self.stem, "mean": self.mean}

    def load_state_dict(self, state: Mapping[str, Any], model: nn.Module) -> None:
        """Takes up what `state_dict` gave.

        Raises:
            InputError: It is of other steps, another number of branches, or another model.
        """
        if state.get("plan") != self.state_dict().get("plan"):
            raise InputError(
                "--resume: its steps belong to other branches; trainer.max_steps, "
                "optimizer.branches and optimizer.stem of a run with branches cannot change"
            )
        kept = {name: dict(state.get(name, {})) for name in ("stem", "mean")}
        for name, weights in kept.items():
            found = mismatch(_floats(model), weights) if weights else None
            if found is not None:
                raise InputError(f"--resume: the {name} of its branches: {found}")
        self.stem, self.mean = kept["stem"], kept["mean"]


def _floats(model: nn.Module) -> Weights:
    """Parameters and buffers themselves; whole numbers never change in training."""
    return {name: own for name, own in model.state_dict().items() if own.is_floating_point()}


def _copy(model: nn.Module) -> Weights:
    """The same on the CPU, in at least 32 bits."""
    return {
        name: own.detach().to("cpu", torch.promote_types(own.dtype, torch.float32), copy=True)
        for name, own in _floats(model).items()
    }


@torch.no_grad()
def _put(weights: Weights, model: nn.Module) -> None:
    for name, own in _floats(model).items():
        own.copy_(weights[name])
