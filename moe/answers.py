"""The one form of an answer, from decoded arrays; numpy alone, so that every backend shares it."""

from __future__ import annotations

from typing import Any

import numpy as np

from moe.calibration import Calibration
from moe.decode import (
    ClassifierVotes,
    Floats,
    SpanChoice,
    mix_classes,
    out_of_scope_scores,
    span_text,
)
from moe.types import TaskSpec, expert_columns

_MAX_SCORES = 10  # labels up to which an answer lists every probability


def label_answers(
    task: TaskSpec,
    votes: ClassifierVotes,
    num_requests: int,
    expert_names: tuple[str, ...],
    calibration: Calibration,
) -> dict[int, dict[str, Any]]:
    """Answers of a classifier task by the number of the request, for those that reached it.

    `score` is the probability of `label` among the in-scope labels or, for a rejected request,
    the sigmoid of how far its out-of-scope score is above the threshold, in nats; `runner_up` is
    the next best label.
    """
    temperatures = calibration.temperatures(expert_names)
    count = len(task.labels)
    mixed = mix_classes(votes, temperatures[votes.expert_P], num_requests, count)
    scores = np.zeros(num_requests)
    if task.out_of_scope is not None:
        scores = out_of_scope_scores(votes, num_requests, count)
    return {
        int(row): _label_answer(task, mixed[row], float(scores[row]), calibration)
        for row in np.unique(votes.row_P)
    }


def _label_answer(
    task: TaskSpec, probabilities: Floats, score: float, calibration: Calibration
) -> dict[str, Any]:
    best, second = np.argsort(-probabilities)[:2]
    answer: dict[str, Any] = {"label": task.labels[best], "score": float(probabilities[best])}
    if task.out_of_scope is not None:
        answer |= {"out_of_scope": False, "runner_up": task.labels[second]}
        threshold = calibration.out_of_scope.get(task.name, np.inf)
        if score > threshold:
            outside = float(1 / (1 + np.exp(threshold - score)))
            answer = {
                "label": None,
                "score": outside,
                "out_of_scope": True,
                "runner_up": task.labels[best],
            }
    if len(task.labels) <= _MAX_SCORES:
        pairs = zip(task.labels, probabilities, strict=True)
        answer["scores"] = {label: float(p) for label, p in pairs}
    return answer


def span_answer(
    task: TaskSpec, choice: SpanChoice, context: str, offsets: Any, calibration: Calibration
) -> dict[str, Any]:
    """Answer of a span task.

    Args:
        task: The task.
        choice: The best span of the request.
        context: The passage.
        offsets: (tokens, 2) character offsets of its tokens.
        calibration: For the no-answer threshold.
    """
    threshold = calibration.no_answer.get(task.name, np.inf)
    if choice.start < 0 or choice.null - choice.score > threshold:
        return {"text": "", "start": None, "end": None, "score": choice.null, "no_answer": True}
    return {
        "text": span_text(choice, context, offsets),
        "start": int(offsets[choice.start][0]),
        "end": int(offsets[choice.end][1]),
        "score": choice.score,
        "no_answer": False,
    }


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
