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
    ran = [answer for answer in output.experts if answer.expert in columns]
    if not ran:
        return {}
    answers: dict[int, dict[int, Floats]] = {}
    for answer in ran:
        logits = answer.logits.double().cpu().numpy()
        for window, own in zip(answer.rows_N.tolist(), logits, strict=True):
            answers.setdefault(window, {})[answer.expert] = own
    weights_BE = output.routing.log_weights_BE.double().exp().cpu().numpy()
    owners: list[int] = requests.batch.request_ids.tolist()
    said: dict[int, list[WindowSaid]] = {}
    for window, by_expert in sorted(answers.items()):
        said.setdefault(owners[window], []).append(
            WindowSaid(
                experts=list(by_expert),
                weights=[float(weights_BE[window, expert]) for expert in by_expert],
                logits=list(by_expert.values()),
                offset=requests.offsets[window],
            )
        )
    return said
