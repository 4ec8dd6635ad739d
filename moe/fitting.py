"""What validation fits before it measures: temperatures, thresholds, and what the gate refuses.

Dimensions: N rows, D encoder width, X exemplars, P (row, expert) pairs, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from moe.abstain import Reference, Vectors, fit_reference, rounded
from moe.calibration import Calibration, fit_second_task
from moe.collect import Answers
from moe.data.routing import RoutingTable
from moe.data.tables import TaskTable
from moe.forms import FORMS

MAX_REMEMBERED = 2_000  # rows of a task, some 4 kB each


def fit_calibration(
    tables: Sequence[TaskTable],
    answers: Sequence[Answers],
    expert_names: Sequence[str],
    out_of_scope_recall: dict[str, float],
    routing: tuple[RoutingTable, Answers] | None = None,
) -> Calibration:
    """Temperatures and thresholds from validation answers.

    Args:
        tables: Labelled rows of each task.
        answers: One per table.
        expert_names: In the gate's order.
        out_of_scope_recall: By task: the recall that its threshold is fitted for.
        routing: Held-out routing rows and what the gate said of them; None without.
    """
    fitted = Calibration(second_task=_fit_second_task(answers, routing))
    for table, said in zip(tables, answers, strict=True):
        spec = table.spec
        recall = 0.0 if spec.out_of_scope is None else out_of_scope_recall[spec.name]
        FORMS[spec.type].fit(said.of(table, expert_names), fitted, recall)
    return fitted


def _fit_second_task(
    answers: Sequence[Answers], routing: tuple[RoutingTable, Answers] | None
) -> float | None:
    """None where no routing row needs two answers: nothing has taught the gate to give them."""
    if routing is None:
        return None
    table, said = routing
    if not any(len(record["targets"]) > 1 for record in table.read(said.row_N.tolist())):
        return None
    return fit_second_task(np.concatenate([a.second_N for a in answers]))


def fit_abstain(
    exemplars: Mapping[str, Vectors],
    answers: Sequence[Answers],
    routing: tuple[RoutingTable, Answers],
) -> Reference | None:
    """What the gate refuses, from training rows, held-out strangers and validation rows.

    Args:
        exemplars: By task, and of the routing rows: embeddings (X, D) of training rows.
        answers: Of the validation rows of each task.
        routing: Held-out routing rows: strangers, and unusual requests that must not be refused.
    """
    table, said = routing
    strange_N = np.array([not record["targets"] for record in table.read(said.row_N.tolist())])
    return fit_reference(
        exemplars,
        said.pooled_ND[strange_N],
        [own.pooled_ND for own in answers],
        said.pooled_ND[~strange_N],
    )


def remembered(embedded: Mapping[str, Vectors], seed: int = 0) -> dict[str, Vectors]:
    """What a checkpoint remembers, so that a gate brick can be fitted without old text.

    Args:
        embedded: By task, and of the routing rows: (X, P) embeddings of training rows.
        seed: Chooses `MAX_REMEMBERED` of each.
    """
    generator = np.random.default_rng(seed)
    return {
        name: rounded(rows_XP[generator.permutation(len(rows_XP))[:MAX_REMEMBERED]])
        for name, rows_XP in embedded.items()
    }
