"""One label for a text, or none of them where the task has an out-of-scope class.

Dimensions: N rows, C classes, P (row, expert) pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moe.calibration import Calibration, fit_confidence, fit_out_of_scope, recall_threshold
from moe.data.formats import By, Example, classifier_examples, clinc_rows
from moe.data.windows import TextTokenizer
from moe.decode import Floats, Logits, WindowSaid, mix_classes, out_of_scope_scores, stack_votes
from moe.forms.base import Collected, LabelledRows, Shown, Source
from moe.metrics import calibration_error, majority_accuracy, out_of_scope_curve
from moe.types import InputError, TaskSpec

if TYPE_CHECKING:
    from moe.config import TaskConfig

GROUP_BY: By = "text"
EVERY_WINDOW = False
COMPARED_RECALL = 0.8  # of out-of-scope rows, where models are compared
SCHEMA: dict[str, Any] = {
    "title": "Label",
    "type": "object",
    "required": ["label", "score"],
    "properties": {
        "label": {"type": ["string", "null"], "description": "null if out of scope"},
        "score": {"type": "number", "description": "probability, in [0, 1]"},
        "scores": {"type": "object", "additionalProperties": {"type": "number"}},
        "out_of_scope": {"type": "boolean"},
        "runner_up": {"type": "string"},
    },
}
_MAX_SCORES = 10  # labels up to which an answer lists every probability

# --- labelled rows ----------------------------------------------------------------------------

read_table, read_json = classifier_examples, clinc_rows


def build_spec(name: str, task: TaskConfig, train: Sequence[Example]) -> TaskSpec:
    """The labels are those listed or else those of the training rows, sorted."""
    found = {example.label or "" for example in train} - {task.out_of_scope}
    labels = task.labels or sorted(found)
    if task.out_of_scope in labels:
        raise InputError(
            f"tasks.{name}.labels lists {task.out_of_scope!r}, which is tasks.{name}.out_of_scope: "
            "keep it in one of the two"
        )
    if len(labels) < 2:
        raise InputError(
            f"task {name}: {len(labels)} label in the training rows ({', '.join(labels)}); "
            "a classifier needs at least 2"
        )
    return TaskSpec(
        name=name,
        type=task.type,
        num_experts=task.experts,
        labels=tuple(labels),
        out_of_scope=task.out_of_scope,
    )


def describe(spec: TaskSpec, train: Sequence[Example]) -> str:
    """Classes, the largest and the smallest, and rows out of scope."""
    counts = Counter(example.label for example in train)
    outside = counts.pop(spec.out_of_scope, 0)
    (most, rows), (least, fewest) = counts.most_common()[0], counts.most_common()[-1]
    detail = f"{len(spec.labels)} classes ({most}: {rows} ... {least}: {fewest})"
    return f"{detail}, {outside} out of scope" if spec.out_of_scope else detail


def encode(
    example: Example, spec: TaskSpec, tokenizer: TextTokenizer, offsets: Any
) -> dict[str, Any]:
    """The class; out of scope is the last."""
    return {"label": _label_number(example, spec)}


def _label_number(example: Example, spec: TaskSpec) -> int:
    if example.label == spec.out_of_scope and example.label is not None:
        return len(spec.labels)
    label = example.label or ""
    if label in spec.labels:
        return spec.labels.index(label)
    if label.isdecimal() and int(label) < len(spec.labels):  # a number stands for its name
        return int(label)
    raise InputError(
        f"task {spec.name}: label {label!r} of {example.text[:60]!r} is neither a name nor a "
        f"number of the {len(spec.labels)} labels ({', '.join(spec.labels[:6])}"
        f"{', ...' if len(spec.labels) > 6 else ''}): correct the row, or list all labels in "
        f"tasks.{spec.name}.labels"
    )


# --- answers ----------------------------------------------------------------------------------


def read(windows: Sequence[WindowSaid], source: Source) -> WindowSaid:
    """The first window alone: the part of a long request that its text is in."""
    return windows[0]


def answers(
    spec: TaskSpec,
    said: Sequence[WindowSaid],
    calibration: Calibration,
    expert_names: Sequence[str],
) -> list[dict[str, Any]]:
    """Label, score, and with few labels all scores.

    `score` is the probability of `label` among the in-scope labels or, for a rejected request,
    the sigmoid of how far its out-of-scope score is above the threshold, in nats; `runner_up` is
    the next best label.
    """
    probabilities_NC, score_N = _mixed(spec, said, calibration, expert_names)
    return [
        _answer(spec, probabilities, float(score), calibration)
        for probabilities, score in zip(probabilities_NC, score_N, strict=True)
    ]


def _mixed(
    spec: TaskSpec,
    said: Sequence[WindowSaid],
    calibration: Calibration,
    expert_names: Sequence[str],
) -> tuple[Floats, Floats]:
    """Probabilities (N, C) of the in-scope classes; out-of-scope scores (N,), 0 without one."""
    votes, labels = stack_votes(said), len(spec.labels)
    temperature_P = calibration.temperatures(expert_names)[votes.expert_P]
    saturation_P = calibration.saturations(expert_names)[votes.expert_P]
    score_N = np.zeros(len(said))
    if spec.out_of_scope is not None:
        score_N = out_of_scope_scores(votes, len(said), labels)
    return mix_classes(votes, temperature_P, saturation_P, len(said), labels), score_N


def _answer(
    spec: TaskSpec, probabilities: Floats, score: float, calibration: Calibration
) -> dict[str, Any]:
    best, second = np.argsort(-probabilities)[:2]
    answer: dict[str, Any] = {"label": spec.labels[best], "score": float(probabilities[best])}
    if spec.out_of_scope is not None:
        answer |= {"out_of_scope": False, "runner_up": spec.labels[second]}
        threshold = calibration.out_of_scope.get(spec.name, np.inf)
        if score > threshold:
            outside = float(1 / (1 + np.exp(threshold - score)))
            answer = {
                "label": None,
                "score": outside,
                "out_of_scope": True,
                "runner_up": spec.labels[best],
            }
    if len(spec.labels) <= _MAX_SCORES:
        pairs = zip(spec.labels, probabilities, strict=True)
        answer["scores"] = {label: float(p) for label, p in pairs}
    return answer


def entries(spec: TaskSpec, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """As `text-classification`; out of scope has the label of the training data."""
    return [{"label": answer["label"] or spec.out_of_scope, "score": answer["score"]}]


def same_answer(ours: Logits, theirs: Logits, attention_mask: NDArray[Any]) -> Floats:
    """1 where the best class is the same."""
    same: Floats = (ours.argmax(1) == theirs.argmax(1)).astype(np.float64)
    return same


# --- measuring --------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ClassifierResult:
    """Decoded answers of a classifier task.

    Attributes:
        label_N: True class; the number of labels stands for out of scope.
        predicted_N, confidence_N: Most probable in-scope class, and its probability.
        score_N: Out-of-scope score, zeros without that class.
        rejected_N: Whether the score passed the fitted threshold.
    """

    label_N: NDArray[np.int64]
    predicted_N: NDArray[np.int64]
    confidence_N: NDArray[np.float64]
    score_N: NDArray[np.float64]
    rejected_N: NDArray[np.bool_]


def classify(collected: Collected, calibration: Calibration) -> ClassifierResult:
    """Labels, confidences and rejections of classifier answers."""
    spec, said = collected.spec, collected.said
    probabilities_NC, score_N = _mixed(spec, said, calibration, collected.expert_names)
    return ClassifierResult(
        label_N=collected.table.labels()[collected.row_N],
        predicted_N=probabilities_NC.argmax(1),
        confidence_N=probabilities_NC.max(1),
        score_N=score_N,
        rejected_N=score_N > calibration.out_of_scope.get(spec.name, np.inf),
    )


def fit(collected: Collected, fitted: Calibration, out_of_scope_recall: float) -> None:
    """Each expert's numbers, on the in-scope rows that it answered; the rejection threshold."""
    spec, votes = collected.spec, stack_votes(collected.said)
    label_N = collected.table.labels()[collected.row_N]
    in_scope_P = label_N[votes.row_P] < len(spec.labels)
    for expert in np.unique(votes.expert_P):
        mine = in_scope_P & (votes.expert_P == expert)
        logits = votes.logits_PC[mine, : len(spec.labels)]
        numbers = fit_confidence(logits, label_N[votes.row_P[mine]])
        fitted.set_confidence(collected.expert_names[expert], *numbers)
    if spec.out_of_scope is not None:
        score_N = out_of_scope_scores(votes, len(label_N), len(spec.labels))
        outside_N = label_N == len(spec.labels)
        threshold = fit_out_of_scope(score_N, outside_N, out_of_scope_recall)
        if threshold is not None:
            fitted.out_of_scope[spec.name] = threshold


def measure(
    collected: Collected, calibration: Calibration, ok_N: NDArray[Any], refused_N: NDArray[Any]
) -> dict[str, float]:
    """Accuracy, or with an out-of-scope class its several sides; calibration error.

    A refused row that is out of scope was answered right.
    """
    spec, result = collected.spec, classify(collected, calibration)
    inside_N = result.label_N < len(spec.labels)
    right_N = (result.predicted_N == result.label_N) & ok_N
    kept_N = inside_N & ~result.rejected_N
    ece = calibration_error(
        result.confidence_N[kept_N], (result.predicted_N == result.label_N)[kept_N]
    )
    if spec.out_of_scope is None:
        return {"accuracy": float(right_N.mean()), "ece": ece}
    auroc, aupr = out_of_scope_curve(result.score_N, ~inside_N)
    at80 = right_N[inside_N].mean()
    if not inside_N.all():
        threshold = recall_threshold(result.score_N, ~inside_N, COMPARED_RECALL)
        at80 = (right_N & (result.score_N <= threshold))[inside_N].mean()
    recalled = ((result.rejected_N & ok_N) | refused_N)[~inside_N]
    return {
        "in_scope_accuracy": float((right_N & ~result.rejected_N)[inside_N].mean()),
        "oos_recall": float(recalled.mean()) if len(recalled) else 0.0,
        "in_scope_at_oos80": float(at80),
        "oos_auroc": auroc,
        "oos_aupr": aupr,
        "ece": ece,
    }


def row_scores(
    collected: Collected, calibration: Calibration, ok_N: NDArray[Any]
) -> dict[str, Floats]:
    """`accuracy`, or with an out-of-scope class `in_scope_at_oos80`: right and kept by the
    threshold that rejects 80 % of the out-of-scope rows, in-scope rows only."""
    spec, result = collected.spec, classify(collected, calibration)
    right_N = (result.predicted_N == result.label_N) & ok_N
    if spec.out_of_scope is None:
        return {"accuracy": 100.0 * right_N}
    outside_N = result.label_N == len(spec.labels)
    threshold = recall_threshold(result.score_N, outside_N, COMPARED_RECALL)
    kept_N = right_N & (result.score_N <= threshold)
    return {"in_scope_at_oos80": 100.0 * kept_N[~outside_N]}


def show(collected: Collected, calibration: Calibration) -> list[Shown]:
    """Names of the labels; a rejected row was answered with the out-of-scope label."""
    spec, result = collected.spec, classify(collected, calibration)
    names = [*spec.labels, spec.out_of_scope or ""]
    answered_N = np.where(result.rejected_N, len(spec.labels), result.predicted_N)
    return [
        Shown(
            expected=names[label],
            answered=names[answered],
            score=float(confidence),
            right=names[answered] == names[label],
        )
        for label, answered, confidence in zip(
            result.label_N, answered_N, result.confidence_N, strict=True
        )
    ]


def baseline(train: LabelledRows, validation: LabelledRows) -> float:
    """Accuracy of the most frequent validation class, in [0, 1]."""
    labels = validation.labels()
    return majority_accuracy(labels[labels < len(validation.spec.labels)])
