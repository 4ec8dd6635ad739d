"""What the experts of one task said in a micro-batch, as numpy for the decoder.

Dimensions: B windows, L tokens, C classes.
"""

from __future__ import annotations

import numpy as np

from moe.data.collate import RequestBatch
from moe.decode import ClassifierVotes, Floats, SpanChoice, best_span
from moe.types import MixtureOutput


def _said(output: MixtureOutput, columns: range) -> list[tuple[int, int, float, Floats]]:
    """(window, expert, weight, logits) of every answer of the experts `columns`."""
    weights_BE = output.routing.log_weights_BE.double().exp().cpu().numpy()
    return [
        (window, answer.expert, float(weights_BE[window, answer.expert]), logits)
        for answer in output.experts
        if answer.expert in columns
        for window, logits in zip(
            answer.rows_N.tolist(), answer.logits.double().cpu().numpy(), strict=True
        )
    ]


def classifier_votes(
    output: MixtureOutput, requests: RequestBatch, columns: range
) -> ClassifierVotes:
    """Votes on the requests' first windows: the part of a long request that its text is in.

    Args:
        output: Of the micro-batch.
        requests: The micro-batch.
        columns: The task's experts in the gate.
    """
    request = {window: number for number, window in enumerate(requests.first_windows())}
    said = [entry for entry in _said(output, columns) if entry[0] in request]
    return ClassifierVotes(
        row_P=np.array([request[window] for window, *_ in said], dtype=np.int64),
        expert_P=np.array([expert for _, expert, *_ in said], dtype=np.int64),
        weight_P=np.array([weight for _, _, weight, _ in said]),
        logits_PC=np.stack([logits for *_, logits in said]),
    )


def span_choices(
    output: MixtureOutput, requests: RequestBatch, columns: range
) -> dict[int, SpanChoice]:
    """The best span of each request that reached the task, by the request's number.

    Args:
        output: Of the micro-batch.
        requests: The micro-batch.
        columns: The task's experts in the gate.
    """
    owners = requests.batch.request_ids.tolist()
    windows: dict[int, dict[int, tuple[list[float], list[Floats]]]] = {}
    for window, _, weight, logits_L2 in _said(output, columns):
        weights, logits = windows.setdefault(owners[window], {}).setdefault(window, ([], []))
        weights.append(weight)
        logits.append(logits_L2)
    return {
        number: best_span([(w, z, requests.offsets[at]) for at, (w, z) in pieces.items()])
        for number, pieces in windows.items()
    }
