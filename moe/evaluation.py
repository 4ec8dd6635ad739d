"""From collected answers to the numbers of a table: fit what is fitted, measure, compare.

Training's validation and `eval.py` share this code, so that their numbers agree. With learned
routing a row that the gate would have sent elsewhere counts as wrong.

Dimensions: N requests, T tasks, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from moe.abstain import nearest_cosines, refusal_scores
from moe.calibration import Calibration
from moe.collect import Answers
from moe.data.tables import TaskTable
from moe.decision import task_experts_matrix
from moe.forms import FORMS
from moe.losses import GateSums, switch_balance
from moe.types import TaskSpec

# What a task is judged by: the first of these among its metrics, and what 1.0 is of it.
MAIN_METRICS = (("in_scope_accuracy", 1.0), ("accuracy", 1.0), ("f1", 100.0))


def refusals(
    said: Answers, calibration: Calibration, specs: Sequence[TaskSpec] = ()
) -> NDArray[np.bool_]:
    """Whether the gate abstains (N,) because a row fits no task.

    Args:
        said: Of the rows.
        calibration: With what the gate refuses by.
        specs: All tasks of the model; needed only if one was added to the trained ones.
    """
    reference = calibration.reference
    if reference is None:
        return np.zeros(len(said.row_N), dtype=np.bool_)
    first_N = said.first_N if specs else ()
    cosines = nearest_cosines(said.pooled_ND, reference)
    scores_N, thresholds_N = refusal_scores(
        cosines, reference, [specs[number].name for number in first_N]
    )
    refused_N: NDArray[np.bool_] = scores_N > thresholds_N
    return refused_N


def measured_routing(
    said: Answers,
    calibration: Calibration,
    routing: Literal["learned", "oracle"],
    specs: Sequence[TaskSpec] = (),
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each row (N,) reaches its own task, and whether the gate abstains from it.

    With `oracle` routing all reach it: tasks that a request names are never refused.
    """
    if routing == "oracle":
        return np.ones_like(said.routed_N), np.zeros_like(said.routed_N)
    refused_N = refusals(said, calibration, specs)
    return said.routed_N & ~refused_N, refused_N


def baseline(train: TaskTable, validation: TaskTable) -> float:
    """The main metric of a trivial answer on the validation rows, in its own unit."""
    return FORMS[validation.spec.type].baseline(train, validation)


def main_metric(metrics: dict[str, float]) -> tuple[str, float]:
    """Name and value of the metric that a task is judged by, as a fraction."""
    for name, scale in MAIN_METRICS:
        if name in metrics:
            return name, metrics[name] / scale
    raise KeyError(f"no main metric among {sorted(metrics)}")


def joint_score(tasks: dict[str, dict[str, float]]) -> float:
    """Mean of the tasks' main metrics as fractions: what the best checkpoint is chosen by."""
    return float(np.mean([main_metric(metrics)[1] for metrics in tasks.values()]))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All numbers of one evaluation, in the shape of `eval.py --json`.

    Attributes:
        tasks: By task: its metrics.
        experts: By expert: `load`, its share of all (row, expert) pairs.
        gate: `routing_accuracy`, `entropy` in nats, `balance` (1.0 = balanced inside the tasks).
    """

    tasks: dict[str, dict[str, float]]
    experts: dict[str, dict[str, float]]
    gate: dict[str, float]


def _in_scope(table: TaskTable, said: Answers) -> NDArray[np.bool_]:
    # Only a classifier has rows out of scope; those of other forms have the label -1.
    inside: NDArray[np.bool_] = table.labels()[said.row_N] < max(len(table.spec.labels), 1)
    return inside


def evaluate(
    tables: Sequence[TaskTable],
    answers: Sequence[Answers],
    calibration: Calibration,
    specs: Sequence[TaskSpec],
    routing: Literal["learned", "oracle"] = "learned",
) -> Evaluation:
    """Metrics of every task, load of every expert, health of the gate.

    Args:
        tables: Labelled rows of some tasks.
        answers: One per table.
        calibration: Temperatures and thresholds to decide with; nothing is fitted here.
        specs: All tasks of the model.
        routing: `oracle` counts every row as sent to its own task.
    """
    names = [name for spec in specs for name in spec.expert_names]
    threshold = calibration.second_task
    if threshold is None or routing == "oracle":  # a request that names its task gets no other
        threshold = np.inf
    tasks: dict[str, dict[str, float]] = {}
    for table, said in zip(tables, answers, strict=True):
        ok_N, refused_N = measured_routing(said, calibration, routing, specs)
        form, collected = FORMS[table.spec.type], said.of(table, names)
        metrics = form.measure(collected, calibration, ok_N, refused_N)
        inside_N = _in_scope(table, said)
        tasks[table.spec.name] = {
            "n": len(said.row_N),
            **metrics,
            "routing_accuracy": float(said.routed_N[inside_N].mean()),
            "abstain_rate": float(refused_N[inside_N].mean()),
            "second_answer_rate": float(((said.second_N > threshold) & ~refused_N).mean()),
        }
    load_E = np.sum([said.load_E for said in answers], axis=0)
    experts = {
        name: {"load": float(n / load_E.sum())} for name, n in zip(names, load_E, strict=True)
    }
    return Evaluation(tasks=tasks, experts=experts, gate=_gate_health(tables, answers, specs))


def _gate_health(
    tables: Sequence[TaskTable], answers: Sequence[Answers], specs: Sequence[TaskSpec]
) -> dict[str, float]:
    inside = [_in_scope(t, said) for t, said in zip(tables, answers, strict=True)]
    routed = np.concatenate([said.routed_N[i] for said, i in zip(answers, inside, strict=True)])
    g_NE = np.concatenate([said.probabilities_NE for said in answers])
    entropy_N = -(g_NE * np.log(np.maximum(g_NE, 1e-30))).sum(1)
    balance = [
        _balance(table.task, said, specs)
        for table, said in zip(tables, answers, strict=True)
        if table.spec.num_experts > 1
    ]
    return {
        "routing_accuracy": float(routed.mean()),
        "entropy": float(entropy_N.mean()),
        "balance": float(np.mean(balance)) if balance else 1.0,
    }


def _balance(task: int, said: Answers, specs: Sequence[TaskSpec]) -> float:
    """`switch_balance` of one task over its evaluation rows."""
    matrix_TE = task_experts_matrix([spec.num_experts for spec in specs])
    mine_E = matrix_TE[task].numpy()
    g_NE = said.probabilities_NE * mine_E
    shares_E = (g_NE / np.maximum(g_NE.sum(1, keepdims=True), 1e-30)).sum(0)
    rows_T = torch.zeros(len(specs))
    rows_T[task] = len(said.row_N)
    sums = GateSums(
        chosen_E=torch.from_numpy(said.load_E * mine_E).float(),
        shares_E=torch.from_numpy(shares_E).float(),
        mass_T=torch.zeros(len(specs)),
        rows_T=rows_T,
    )
    return float(switch_balance(sums, matrix_TE)[task])
