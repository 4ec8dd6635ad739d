"""The routing part of an answer, in numpy alone, so that every backend shares it."""

from __future__ import annotations

from typing import Any

from moe.types import TaskSpec, expert_columns


def routing_answer(
    tasks: tuple[TaskSpec, ...], mass_T: Any, chosen_T: Any, weight_E: Any
) -> list[dict[str, Any]]:
    """The chosen tasks of one request with their experts, the most probable first.

    Args:
        tasks: All tasks of the model.
        mass_T: (T,) the gate's mass on each.
        chosen_T: (T,) bool.
        weight_E: (E,) weights of the chosen experts, 0 elsewhere.
    """
    entries: list[dict[str, Any]] = []
    for number, (task, columns) in enumerate(zip(tasks, expert_columns(tasks), strict=True)):
        if chosen_T[number]:
            experts = [
                {"name": name, "weight": float(weight_E[column])}
                for name, column in zip(task.expert_names, columns, strict=True)
                if weight_E[column] > 0
            ]
            probability = float(mass_T[number])
            entries.append({"task": task.name, "probability": probability, "experts": experts})
    return sorted(entries, key=lambda entry: -float(entry["probability"]))
