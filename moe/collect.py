"""What the model says of labelled rows, collected batch by batch.

The rows' own task is forced, so that one pass gives the answers of learned and of oracle routing;
what the learned gate would have done is kept beside them.

Dimensions: N requests, T tasks, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from moe.data.collate import RequestBatch
from moe.data.tables import TaskTable
from moe.decode import ClassifierVotes, span_text
from moe.gate import route
from moe.model import Mixture
from moe.readout import classifier_votes, span_choices
from moe.types import MixtureOutput


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the model said of rows of one task.

    Attributes:
        row_N: Index of each row in its table.
        mass_NT: The gate's mass on each task.
        probabilities_NE: The gate's probabilities.
        routed_N: Whether the learned gate would have chosen the row's own task.
        chosen_NE: The experts that the learned gate would have chosen.
        votes: Of a classifier task, rows numbered as in `row_N`.
        spans: Of a span task: answer text, its probability, probability of no answer.
    """

    row_N: NDArray[np.int64]
    mass_NT: NDArray[np.float64]
    probabilities_NE: NDArray[np.float64]
    routed_N: NDArray[np.bool_]
    chosen_NE: NDArray[np.bool_]
    votes: ClassifierVotes | None = None
    spans: tuple[tuple[str, float, float], ...] = ()

    @property
    def load_E(self) -> NDArray[np.int64]:
        """How often the learned gate chose each expert."""
        load: NDArray[np.int64] = self.chosen_NE.sum(0)
        return load


def _spans(
    table: TaskTable, output: MixtureOutput, requests: RequestBatch, columns: range
) -> tuple[tuple[str, float, float], ...]:
    choices = span_choices(output, requests, columns)
    texts = [
        span_text(choices[number], record["context"], record["offsets"].reshape(-1, 2))
        for number, record in enumerate(table.read(requests.rows))
    ]
    return tuple(
        (text, choices[number].score, choices[number].null) for number, text in enumerate(texts)
    )


@torch.no_grad()
def collect(model: Mixture, table: TaskTable, requests: RequestBatch) -> Answers:
    """Runs the model on rows of one task with that task forced.

    Args:
        model: In evaluation mode.
        table: The rows' table.
        requests: A micro-batch of its rows, on the model's device.
    """
    batch = requests.batch
    output = model(batch, tasks_BT=model.own_tasks(batch))
    first = requests.first_windows()
    learned = route(
        output.routing.logits_BE[first],
        model.task_sizes,
        allowed_BT=model.answerable(batch)[first],
        top_k=model.top_k,
        multi_task_threshold=model.multi_task_threshold,
        selection_bias_E=model.gate.selection_bias,
    )
    columns = range(sum(model.task_sizes[: table.task]), sum(model.task_sizes[: table.task + 1]))
    is_span = table.spec.type == "span"
    return Answers(
        row_N=np.array(requests.rows),
        mass_NT=learned.task_mass_BT.double().cpu().numpy(),
        probabilities_NE=learned.probabilities_BE.double().cpu().numpy(),
        routed_N=learned.tasks_BT[:, table.task].cpu().numpy(),
        chosen_NE=learned.chosen_BE.cpu().numpy(),
        votes=None if is_span else classifier_votes(output, requests, columns),
        spans=_spans(table, output, requests, columns) if is_span else (),
    )


def join(parts: Sequence[Answers]) -> Answers:
    """The answers of several micro-batches as one, in the order of the table's rows."""
    starts = np.cumsum([0] + [len(part.row_N) for part in parts])
    row_N = np.concatenate([part.row_N for part in parts])
    order = np.argsort(row_N)
    votes = None
    if parts[0].votes is not None:
        place = np.argsort(order)
        pairs = [part.votes for part in parts if part.votes is not None]
        row_P = np.concatenate([v.row_P + s for v, s in zip(pairs, starts, strict=False)])
        votes = ClassifierVotes(
            row_P=place[row_P],
            expert_P=np.concatenate([v.expert_P for v in pairs]),
            weight_P=np.concatenate([v.weight_P for v in pairs]),
            logits_PC=np.concatenate([v.logits_PC for v in pairs]),
        )
    spans = [span for part in parts for span in part.spans]
    return Answers(
        row_N=row_N[order],
        mass_NT=np.concatenate([part.mass_NT for part in parts])[order],
        probabilities_NE=np.concatenate([part.probabilities_NE for part in parts])[order],
        routed_N=np.concatenate([part.routed_N for part in parts])[order],
        chosen_NE=np.concatenate([part.chosen_NE for part in parts])[order],
        votes=votes,
        spans=tuple(spans[i] for i in order) if spans else (),
    )
