"""The tasks of a model with an expert more or less, and the model rebuilt around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import torch

from moe.build import build_model, build_task_expert
from moe.checkpoint import Bundle
from moe.config import TaskConfig
from moe.experts import Expert
from moe.model import Mixture
from moe.types import ExpertSpec, InputError, TaskSpec, expert_columns, expert_specs

Tasks = tuple[TaskSpec, ...]


def listed(tasks: Sequence[TaskSpec]) -> Tasks:
    """The same tasks with their experts one by one, so that these can be changed."""
    experts_E = expert_specs(tasks)
    return tuple(
        with_experts(task, [experts_E[column] for column in columns])
        for task, columns in zip(tasks, expert_columns(tasks), strict=True)
    )


def with_experts(task: TaskSpec, experts: Sequence[ExpertSpec]) -> TaskSpec:
    """The task with these experts."""
    return replace(task, experts=tuple(experts), num_experts=len(experts))


def replace_task(tasks: Sequence[TaskSpec], changed: TaskSpec) -> Tasks:
    """The tasks with the one of that name exchanged, or appended as a new one."""
    if changed.name not in [task.name for task in tasks]:
        return (*tasks, changed)
    return tuple(changed if task.name == changed.name else task for task in tasks)


def find_task(bundle: Bundle, name: str, option: str = "--task") -> TaskSpec:
    """A task of the model.

    Raises:
        InputError: It has no such task.
    """
    known = {task.name: task for task in bundle.model.tasks}
    if name not in known:
        raise InputError(f"{option} {name!r}: no such task; the model has {sorted(known)}")
    return known[name]


def find_expert(bundle: Bundle, name: str, option: str = "--expert") -> TaskSpec:
    """The task of an expert of the model.

    Raises:
        InputError: It has no such expert.
    """
    for task in bundle.model.tasks:
        if name in task.expert_names:
            return task
    known = sorted(bundle.model.expert_names)
    raise InputError(f"{option} {name!r}: no such expert; the model has {known}")


def free_name(bundle: Bundle, task: str) -> str:
    """`task-0`, or the first number that neither an expert nor a gate brick has."""
    taken = {*bundle.model.expert_names, *bundle.model.gate.bricks}
    return next(name for n in count() if (name := f"{task}-{n}") not in taken)


def rebuild(bundle: Bundle, tasks: Sequence[TaskSpec], seed: int = 0) -> Mixture:
    """The mixture of `tasks`: tensors that were there keep their values, others are drawn anew.

    The encoder is shared with the old model, all else is a copy.

    Args:
        bundle: What it is made of.
        tasks: With their experts listed.
        seed: Of new tensors.
    """
    old = bundle.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rows = len(old.gate.selection_bias)
        model = build_model(bundle.config.model, tasks, old.encoder, rows)
    fresh, known = model.state_dict(), old.state_dict()
    model.load_state_dict({name: known.get(name, values) for name, values in fresh.items()})
    model.multi_task_threshold = old.multi_task_threshold
    return model.eval()


def with_task_config(bundle: Bundle, name: str, task: TaskConfig | None) -> Bundle:
    """The bundle whose config has the task, or without it if None."""
    config = bundle.config
    tasks = {key: value for key, value in config.tasks.items() if key != name}
    chosen = config.data.tasks
    if task is not None:
        tasks = {**tasks, name: task}
    if chosen is not None:
        kept = [key for key in chosen if key != name]
        chosen = kept if task is None else [*kept, name]
    data = replace(config.data, tasks=chosen)
    return replace(bundle, config=replace(config, tasks=tasks, data=data))


def with_counted_experts(bundle: Bundle) -> Bundle:
    """The bundle whose config says how many experts each task of the model has now."""
    config = bundle.config
    counts = {task.name: task.num_experts for task in bundle.model.tasks}
    tasks = {
        name: replace(task, experts=counts.get(name, task.experts))
        for name, task in config.tasks.items()
    }
    return replace(bundle, config=replace(config, tasks=tasks))


def without_task(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The entries of all other names."""
    return {key: value for key, value in values.items() if key not in names}


def forget(bundle: Bundle, *, experts: Sequence[str], tasks: Sequence[str] = ()) -> Bundle:
    """Without what was fitted for and kept of these experts and tasks; weights are not touched."""
    fitted, reference = bundle.calibration, bundle.calibration.reference
    if reference is not None:
        reference = replace(
            reference,
            exemplars=without_task(reference.exemplars, tasks),
            grown=without_task(reference.grown, tasks),
        )
    memory = without_task(bundle.memory, tasks)
    metrics = {**bundle.metrics}
    if "tasks" in metrics:
        metrics["tasks"] = without_task(metrics["tasks"], tasks)
    if "experts" in metrics:
        metrics["experts"] = without_task(metrics["experts"], experts)
    calibration = replace(
        fitted,
        temperature=without_task(fitted.temperature, experts),
        saturation=without_task(fitted.saturation, experts),
        out_of_scope=without_task(fitted.out_of_scope, tasks),
        no_answer=without_task(fitted.no_answer, tasks),
        reference=reference,
    )
    return replace(bundle, calibration=calibration, memory=memory, metrics=metrics)


def fresh_expert(bundle: Bundle, name: str, seed: int) -> Expert:
    """An untrained expert of the shape of one that the model has; its trunk copies the encoder.

    Args:
        bundle: The model.
        name: Of the expert.
        seed: Of the weights.
    """
    task = find_expert(bundle, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_task_expert(bundle.config.model, task, bundle.model.encoder, "encoder")
