"""Fitted numbers and metrics of one task of a changed model, from validation rows of that task."""

from __future__ import annotations

from dataclasses import replace

import torch

from moe.checkpoint import Bundle
from moe.collect import Answers
from moe.config import TaskConfig
from moe.data.tables import TaskTable
from moe.evaluation import evaluate
from moe.fitting import fit_calibration
from moe.measure import collect_table


def collect_here(bundle: Bundle, table: TaskTable) -> Answers:
    """The model's answers on the device that it is on."""
    device = next(bundle.model.parameters()).device
    return collect_table(bundle, table, torch.device(device))


def refit(bundle: Bundle, table: TaskTable, task: TaskConfig, said: Answers) -> Bundle:
    """The bundle with temperatures and thresholds of one task fitted again; no other moves.

    Args:
        bundle: With the new weights.
        table: Validation rows of the task.
        task: For its `out_of_scope_recall`.
        said: The model's answers for them.
    """
    name = table.spec.name
    recall = {name: task.out_of_scope_recall}
    fitted = fit_calibration([table], [said], bundle.model.expert_names, recall)
    old = bundle.calibration
    calibration = replace(
        old.with_experts(fitted, {expert: expert for expert in fitted.temperature}),
        out_of_scope={**old.out_of_scope, **fitted.out_of_scope},
        no_answer={**old.no_answer, **fitted.no_answer},
    )
    return replace(bundle, calibration=calibration)


def measured(bundle: Bundle, table: TaskTable, said: Answers) -> Bundle:
    """The bundle whose metrics hold those of the table's task, through the learned gate."""
    found = evaluate([table], [said], bundle.calibration, bundle.model.tasks)
    tasks = {**bundle.metrics.get("tasks", {}), **found.tasks}
    return replace(bundle, metrics={**bundle.metrics, "tasks": tasks})


def remeasured(bundle: Bundle, table: TaskTable, task: TaskConfig | None) -> Bundle:
    """The bundle with metrics of the table's task, and fitted to its rows if a config is given."""
    said = collect_here(bundle, table)
    if task is not None:
        bundle = refit(bundle, table, task, said)
    return measured(bundle, table, said)
