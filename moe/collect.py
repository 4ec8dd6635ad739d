"""What the model says of labelled rows, collected batch by batch.

The rows' own task is forced, so that one pass gives the answers of learned and of oracle routing;
what the learned gate would have done is kept beside them.

Dimensions: N requests, T tasks, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moe.data.collate import RequestBatch
from moe.data.tables import TaskTable
from moe.decode import ClassifierVotes, best_span
from moe.gate import route
from moe.model import Mixture
from moe.types import MixtureOutput


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the model said of rows of one task.

    Attributes:
        row_N: Index of each row in its table.
        mass_NT: The gate's mass on each task.
        probabilities_NE: The gate's probabilities.
        routed_N: Whether the learned gate would have chosen the row's own task.
        load_E: How often the learned gate chose each expert.
        votes: Of a classifier task, rows numbered as in `row_N`.
        spans: Of a span task: answer text, its probability, probability of no answer.
    """

    row_N: NDArray[np.int64]
    mass_NT: NDArray[np.float64]
    probabilities_NE: NDArray[np.float64]
    routed_N: NDArray[np.bool_]
    load_E: NDArray[np.int64]
    votes: ClassifierVotes | None = None
    spans: tuple[tuple[str, float, float], ...] = ()


def _classifier_votes(model: Mixture, output: MixtureOutput, first: list[int]) -> ClassifierVotes:
    """Votes of the requests' first windows: the part of a long request that its text is in."""
    request = {window: number for number, window in enumerate(first)}
    rows, experts, weights, logits = [], [], [], []
    for answer in output.experts:
        values = answer.logits.double().cpu().numpy()
        log_weights = output.routing.log_weights_BE[:, answer.expert].double().exp().cpu().numpy()
        for at, window in enumerate(answer.rows_N.tolist()):
            if window in request:
                rows.append(request[window])
                experts.append(answer.expert)
                weights.append(log_weights[window])
                logits.append(values[at])
    return ClassifierVotes(
        row_P=np.array(rows),
        expert_P=np.array(experts),
        weight_P=np.array(weights),
        logits_PC=np.stack(logits),
    )


def _spans(
    table: TaskTable, output: MixtureOutput, requests: RequestBatch
) -> tuple[tuple[str, float, float], ...]:
    weights_BE = output.routing.log_weights_BE.double().exp().cpu().numpy()
    answers: dict[int, list[tuple[float, Any]]] = {}
    for answer in output.experts:
        values = answer.logits.double().cpu().numpy()
        for at, window in enumerate(answer.rows_N.tolist()):
            answers.setdefault(window, []).append((weights_BE[window, answer.expert], values[at]))
    owners = requests.batch.request_ids.tolist()
    records = table.read(requests.rows)
    result = []
    for number, record in enumerate(records):
        windows = [
            ([w for w, _ in answers[i]], [z for _, z in answers[i]], requests.offsets[i])
            for i, owner in enumerate(owners)
            if owner == number
        ]
        choice = best_span(windows)
        offsets = record["offsets"].reshape(-1, 2)
        text = ""
        if choice.start >= 0:
            text = record["context"][offsets[choice.start, 0] : offsets[choice.end, 1]]
        result.append((text, choice.score, choice.null))
    return tuple(result)


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
    is_span = table.spec.type == "span"
    return Answers(
        row_N=np.array(requests.rows),
        mass_NT=learned.task_mass_BT.double().cpu().numpy(),
        probabilities_NE=learned.probabilities_BE.double().cpu().numpy(),
        routed_N=learned.tasks_BT[:, table.task].cpu().numpy(),
        load_E=learned.chosen_BE.sum(0).cpu().numpy(),
        votes=None if is_span else _classifier_votes(model, output, first),
        spans=_spans(table, output, requests) if is_span else (),
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
        load_E=sum((part.load_E for part in parts), np.zeros_like(parts[0].load_E)),
        votes=votes,
        spans=tuple(spans[i] for i in order) if spans else (),
    )
