"""Two experts into one, without data or with a little; and an expert from another checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from moe.bricks.fit import FitConfig, answer_loss, fit_expert
from moe.bricks.history import Changed, record
from moe.bricks.measuring import remeasured
from moe.bricks.rows import NewRows, read_rows
from moe.bricks.states import EncodedRows, encode_rows, shuffled_batches
from moe.bricks.tasks import find_expert, forget, listed, rebuild, replace_task, with_experts
from moe.bricks.update import copied_model
from moe.calibration import Calibration
from moe.checkpoint import Bundle
from moe.config import OptimizerConfig, TaskConfig
from moe.data.windows import TextTokenizer
from moe.experts import Expert
from moe.types import ExpertSpec, InputError, TaskSpec

Method = Literal["average", "task-arithmetic", "ties", "fisher"]
METHODS: tuple[Method, ...] = ("average", "task-arithmetic", "ties", "fisher")
Weights = Mapping[str, Tensor]
KEPT = 0.2  # share of the largest changes of each parent that `ties` keeps
FISHER_BATCHES = 32
# Gentler than an update: what both parents know is there, and rows are few (docs/bricks.md).
_HEALING = FitConfig(optimizer=OptimizerConfig(expert_lr=3e-5))


def merged_weights(
    parents: tuple[Weights, Weights],
    method: Method,
    base: Weights | None = None,
    fisher: tuple[Weights, Weights] | None = None,
) -> dict[str, Tensor]:
    """Weights of one expert from those of two.

    `average`: their mean. `task-arithmetic` (Ilharco et al. 2023): the base plus the sum of both
    changes. `ties` (Yadav et al. 2023): of each change the largest fifth, of these in each number
    the mean of those with the sign of the larger sum. `fisher` (Matena and Raffel 2022): the mean,
    weighted in each number by the diagonal of the Fisher information.

    Args:
        parents: By name.
        method: Which.
        base: Where both started; None is their mean, for which the second and third are it.
        fisher: Of `fisher`, by name.
    """
    one, two = parents
    mean = {name: (one[name] + two[name]) / 2 for name in one}
    if method == "average":
        return mean
    if method == "fisher":
        assert fisher is not None
        # The small constant leaves the mean where neither parent is sure of a number.
        f_one, f_two = ({k: v + 1e-10 for k, v in part.items()} for part in fisher)
        return {
            name: (f_one[name] * one[name] + f_two[name] * two[name]) / (f_one[name] + f_two[name])
            for name in one
        }
    start = mean if base is None else base
    changes = [{name: parent[name] - start[name] for name in start} for parent in parents]
    if method == "task-arithmetic":
        return {name: start[name] + changes[0][name] + changes[1][name] for name in start}
    return {name: start[name] + _ties(changes[0][name], changes[1][name]) for name in start}


def _ties(one: Tensor, two: Tensor) -> Tensor:
    """Trimmed, sign-elected mean of two changes of a tensor."""
    both = torch.stack([_largest(one), _largest(two)])
    elected = torch.sign(both.sum(0))
    agreeing = (torch.sign(both) == elected) & (both != 0)
    merged: Tensor = (both * agreeing).sum(0) / agreeing.sum(0).clamp_min(1)
    return merged


def _largest(change: Tensor) -> Tensor:
    count = max(int(KEPT * change.numel()), 1)
    limit = change.abs().flatten().topk(count).values[-1]
    return change * (change.abs() >= limit)


def fisher_information(
    expert: Expert, rows: EncodedRows, tokenizer: Any, seed: int = 0
) -> dict[str, Tensor]:
    """Diagonal of the empirical Fisher information: mean squared gradient over batches of 8."""
    named = dict(expert.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    lengths = [len(window) for window in rows.windows]
    batches = list(shuffled_batches(lengths, 8, np.random.default_rng(seed)))[:FISHER_BATCHES]
    with torch.enable_grad():
        for chosen in batches:
            loss = answer_loss(expert, *rows.batch(chosen, tokenizer))
            gradients = torch.autograd.grad(loss, list(named.values()))
            for name, gradient in zip(named, gradients, strict=True):
                total[name] += gradient.square() / len(batches)
    return total


def merged_experts(
    parents: tuple[Expert, Expert],
    method: Method,
    base: Weights | None,
    rows: EncodedRows | None,
    tokenizer: TextTokenizer,
) -> dict[str, Tensor]:
    """`merged_weights` of two experts, with the Fisher information of both where that is needed.

    Args:
        parents: Two of one shape.
        method: How.
        base: See `merged_weights`.
        rows: What `fisher` is measured on.
        tokenizer: The encoder's.
    """
    one, two = parents
    fisher = None
    if method == "fisher":
        assert rows is not None, "fisher needs rows"
        fisher = (
            fisher_information(one, rows, tokenizer),
            fisher_information(two, rows, tokenizer),
        )
    return merged_weights((one.state_dict(), two.state_dict()), method, base, fisher)


def healing_fit(steps: int) -> FitConfig:
    """How a merged expert is trained for some optimizer steps.

    Raises:
        InputError: Fewer than one.
    """
    if steps < 1:
        raise InputError(f"--healing_steps {steps}: expected at least 1, or leave it out")
    return replace(_HEALING, steps=steps)


def merge(
    bundle: Bundle,
    *,
    experts: tuple[str, str],
    method: Method,
    other: Bundle | None = None,
    base: Bundle | None = None,
    config: TaskConfig | None = None,
    root: str = ".",
    healing: FitConfig | None = None,
) -> Changed:
    """The model in which one expert stands for two of its task.

    The first keeps its name, and on the gate it has the mass of both: routing between tasks does
    not move.

    Args:
        bundle: A trained model.
        experts: Two of one task; the second one is that of `other` if given, where the two may
            have one name.
        method: How.
        other: Another checkpoint with the same encoder.
        base: The checkpoint in which both were still one expert, of the first name.
        config: Rows for `fisher` and for healing.
        root: Folder of relative sources.
        healing: Training of the merged expert, None without.

    Raises:
        InputError: The experts do not fit each other, or rows are missing.
    """
    first, second = experts
    task = find_expert(bundle, first, "--experts")
    source = bundle if other is None else other
    twin = find_expert(source, second, "--experts")
    _check_alike(bundle, source, task, twin, experts)
    if (method == "fisher" or healing is not None) and config is None:
        raise InputError(
            f"merge: {method} with {healing and healing.steps} healing steps needs "
            "rows of the task: give --train"
        )
    rows = None if config is None else _rows(bundle, task, config, root)
    encoded = None if rows is None else encode_rows(bundle, rows.train)
    parents: Any = bundle.model.experts[first], source.model.experts[second]
    start = None if base is None else _base_weights(base, first)
    weights = merged_experts(parents, method, start, encoded, bundle.tokenizer)
    after = copied_model(bundle) if other is not None else _joined(bundle, task, experts)
    module: Any = after.model.experts[first]
    module.load_state_dict(weights)
    if healing is not None and encoded is not None:
        fit_expert(module, encoded, bundle.tokenizer, healing)
    if rows is not None:
        spec = next(t for t in after.model.tasks if t.name == task.name)
        refitted = None if config is None or config.validation is None else rows.config
        after = remeasured(after, replace(rows.validation, spec=spec), refitted)
    return record(
        bundle,
        after,
        operation="merge",
        about={
            "experts": list(experts),
            "method": method,
            "from_other": other is not None,
            "base": base is not None,
            "healing_steps": healing and healing.steps,
        },
        data=None if rows is None else rows.origin,
        notes=_notes(method, base),
    )


def _notes(method: Method, base: Bundle | None) -> tuple[str, ...]:
    if method in ("task-arithmetic", "ties") and base is None:
        return (f"{method} without --base: the base is the mean of the two, so the result is it",)
    return ()


def _rows(bundle: Bundle, task: TaskSpec, config: TaskConfig, root: str) -> NewRows:
    return read_rows(bundle, task.name, replace(config, type=task.type), root=root, spec=task)


def _base_weights(base: Bundle, name: str) -> Weights:
    find_expert(base, name, "--base")
    weights: Weights = base.model.experts[name].state_dict()
    return weights


def _check_alike(
    bundle: Bundle, other: Bundle, task: TaskSpec, twin: TaskSpec, experts: tuple[str, str]
) -> None:
    if other is bundle and experts[0] == experts[1]:
        raise InputError(f"--experts {experts[0]} {experts[1]}: name two different experts")
    if task.name != twin.name or task.labels != twin.labels:
        raise InputError(
            f"--experts {experts[0]} {experts[1]}: they answer {task.name!r} and {twin.name!r}; "
            "only experts of one task with the same labels can be merged"
        )
    check_same_encoder(bundle, other)
    shapes = [
        {name: tuple(v.shape) for name, v in b.model.experts[expert].state_dict().items()}
        for b, expert in zip((bundle, other), experts, strict=True)
    ]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"--experts {experts[0]} {experts[1]}: their trunks have different shapes and cannot "
            "be merged number by number"
        )


def check_same_encoder(bundle: Bundle, other: Bundle) -> None:
    """Experts read the encoder's states: in another one they mean nothing.

    Raises:
        InputError: A tensor of the encoders differs.
    """
    ours, theirs = bundle.model.encoder.state_dict(), other.model.encoder.state_dict()
    for name, tensor in ours.items():
        if name not in theirs or not torch.equal(tensor, theirs[name]):
            raise InputError(
                f"--from: its encoder differs in {name}; an expert can only come from a checkpoint "
                "with the same encoder, made by bricks.py from the same training"
            )


def _joined(bundle: Bundle, task: TaskSpec, experts: tuple[str, str]) -> Bundle:
    """The bundle in which the first expert has the gate columns of both and the second is gone."""
    tasks = listed(bundle.model.tasks)
    mine = next(t for t in tasks if t.name == task.name)
    by_name = {expert.name: expert for expert in mine.experts}
    one, two = (by_name[name] for name in experts)
    both = ExpertSpec(name=one.name, rows=one.rows + two.rows, bricks=one.bricks + two.bricks)
    kept = [both if e.name == one.name else e for e in mine.experts if e.name != two.name]
    model = rebuild(bundle, replace_task(tasks, with_experts(mine, kept)))
    fitted, mean = bundle.calibration, Calibration()
    known = [name for name in experts if name in fitted.temperature]
    if known:
        temperature = float(fitted.temperatures(known).mean())
        inverse = float(np.mean(1 / fitted.saturations(known)))
        mean.set_confidence(one.name, temperature, 1 / inverse if inverse else None)
    after = forget(replace(bundle, model=model), experts=[two.name])
    return replace(after, calibration=after.calibration.with_experts(mean, {one.name: one.name}))
