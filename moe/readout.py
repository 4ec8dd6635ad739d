"""What the experts of one task said in a micro-batch, as numpy for the forms.

Dimensions: B windows, L tokens, C classes.
"""

from __future__ import annotations

from moe.data.collate import RequestBatch
from moe.decode import Floats, WindowSaid
from moe.types import MixtureOutput


def read_task(
    output: MixtureOutput, requests: RequestBatch, columns: range
) -> dict[int, list[WindowSaid]]:
    """The windows of each request that reached the task, from left to right, by its number.

    Args:
        output: Of the micro-batch.
        requests: The micro-batch.
        columns: The task's experts in the gate.
    """
    weights_BE = output.routing.log_weights_BE.double().exp().cpu().numpy()
    answers: dict[int, list[tuple[int, Floats]]] = {}
    for answer in output.experts:
        if answer.expert in columns:
            logits = answer.logits.double().cpu().numpy()
            for window, own in zip(answer.rows_N.tolist(), logits, strict=True):
                answers.setdefault(window, []).append((answer.expert, own))
    owners: list[int] = requests.batch.request_ids.tolist()
    said: dict[int, list[WindowSaid]] = {}
    for window, own in sorted(answers.items()):
        experts = [expert for expert, _ in own]
        said.setdefault(owners[window], []).append(
            WindowSaid(
                experts=experts,
                weights=[float(weights_BE[window, expert]) for expert in experts],
                logits=[logits for _, logits in own],
                offset=requests.offsets[window],
            )
        )
    return said
