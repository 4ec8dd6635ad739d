"""Taking an expert or a whole task out again; nothing that stays is touched."""

from __future__ import annotations

from dataclasses import replace

from moe.bricks.history import Changed, record
from moe.bricks.tasks import (
    Tasks,
    find_expert,
    find_task,
    forget,
    listed,
    rebuild,
    replace_task,
    with_experts,
    with_task_config,
)
from moe.checkpoint import Bundle
from moe.types import InputError


def remove(bundle: Bundle, *, expert: str | None = None, task: str | None = None) -> Changed:
    """The model without an expert, or without all experts of a task.

    With its last expert a task goes, too: its exemplars, thresholds and metrics are forgotten. The
    rows of the trained gate stay in the file and are no longer read, so that the logits of the
    others are computed, bit for bit, as before.

    Args:
        bundle: A trained model.
        expert: Name of an expert.
        task: Name of a task, instead.

    Raises:
        InputError: There is no such expert or task, or nothing would be left.
    """
    if (expert is None) == (task is None):
        raise InputError("remove: name either --expert or --task")
    found = find_expert(bundle, expert) if expert else find_task(bundle, task or "")
    gone = [expert] if expert else list(found.expert_names)
    tasks, lost = without_experts(listed(bundle.model.tasks), gone)
    _check_rest(tasks, gone)
    after = forget(replace(bundle, model=rebuild(bundle, tasks)), experts=gone, tasks=lost)
    for name in lost:
        after = with_task_config(after, name, None)
    return record(
        bundle,
        after,
        operation="remove",
        about={"experts": gone, "tasks": lost},
        notes=(f"removed {', '.join([*gone, *(f'task {name}' for name in lost)])}",),
    )


def without_experts(tasks: Tasks, gone: list[str]) -> tuple[Tasks, list[str]]:
    """The tasks without some experts, and the names of those that have none left."""
    lost = []
    for task in tasks:
        kept = [expert for expert in task.experts if expert.name not in gone]
        if not kept:
            lost.append(task.name)
        elif len(kept) < len(task.experts):
            tasks = replace_task(tasks, with_experts(task, kept))
    return tuple(task for task in tasks if task.name not in lost), lost


def _check_rest(tasks: Tasks, gone: list[str]) -> None:
    if not any(expert.rows for task in tasks for expert in task.experts):
        raise InputError(
            f"remove {', '.join(gone)}: no expert would be left that the gate was trained with; "
            "added experts are scored against those"
        )
