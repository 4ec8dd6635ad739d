"""One validation: what the ranks collected is joined, then fitted on, then measured.

Dimensions: N rows, P width of what gate bricks read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np

from moe.abstain import Vectors
from moe.calibration import Calibration
from moe.collect import Answers, join
from moe.config import ExperimentConfig
from moe.data.routing import RoutingTable
from moe.data.tables import TaskTable
from moe.evaluation import Evaluation, evaluate
from moe.fitting import fit_abstain, fit_calibration, remembered
from moe.model import Mixture
from moe.profile import Profile, validation_profile

Embedded = tuple[Sequence[int], Vectors]  # rows of a table, and (N, P) what was read of them


@dataclass(kw_only=True)
class Collected:
    """What one rank has seen of each validation loader, in parts.

    Attributes:
        answers: By table: of the tasks, then of the routing rows if there are any.
        embedded: By table of exemplars.
    """

    answers: list[list[Answers]]
    embedded: list[list[Embedded]] = field(default_factory=list)

    def __add__(self, other: Collected) -> Collected:
        return Collected(
            answers=[a + b for a, b in zip(self.answers, other.answers, strict=True)],
            embedded=[a + b for a, b in zip(self.embedded, other.embedded, strict=True)],
        )


@dataclass(frozen=True, kw_only=True)
class Validated:
    """What a validation finds.

    Attributes:
        calibration: Fitted temperatures and thresholds.
        memory: By name: embeddings to keep; None without exemplars.
        evaluation: All numbers.
        profile: Of the rows.
    """

    calibration: Calibration
    memory: dict[str, Vectors] | None
    evaluation: Evaluation
    profile: Profile


def validate(
    model: Mixture,
    config: ExperimentConfig,
    tables: Sequence[TaskTable],
    routing: RoutingTable | None,
    exemplars: Mapping[str, TaskTable | RoutingTable],
    collected: Sequence[Collected],
) -> tuple[Validated, list[Answers]]:
    """Fits temperatures and thresholds, then measures with them; also the answers by task.

    Args:
        model: The mixture.
        config: Of the run.
        tables: Validation tables of the tasks.
        routing: Held-out routing rows; None without.
        exemplars: Rows to compare with.
        collected: Of every rank; each row is in one of them.
    """
    both = reduce(Collected.__add__, collected)
    every = [join(parts) for parts in both.answers]
    answers = every[: len(tables)]
    held = None if routing is None else (routing, every[-1])
    recalls = {k: t.out_of_scope_recall for k, t in config.selected_tasks.items()}
    calibration = fit_calibration(tables, answers, model.expert_names, recalls, held)
    memory = None
    if exemplars and held is not None:
        found = zip(exemplars, both.embedded, strict=True)
        embedded = {name: _in_order(parts) for name, parts in found}
        memory = remembered(embedded)
        read = {name: rows_NP[:, : model.gate.dim] for name, rows_NP in embedded.items()}
        calibration = replace(calibration, reference=fit_abstain(read, answers, held))
    if model.multi_task_threshold is not None:  # set by hand
        calibration = replace(calibration, second_task=model.multi_task_threshold)
    measured = tables, answers, calibration, model.tasks
    validated = Validated(
        calibration=calibration,
        memory=memory,
        evaluation=evaluate(*measured),
        profile=validation_profile(*measured),
    )
    return validated, answers


def _in_order(parts: Sequence[Embedded]) -> Vectors:
    """Embeddings (N, P) in the order of the table, whoever had which row."""
    rows_N = np.concatenate([rows for rows, _ in parts])
    embedded: Vectors = np.concatenate([part_NP for _, part_NP in parts])[np.argsort(rows_N)]
    return embedded
