"""Scores of single rows, from the answers that a model gives to everybody.

Nothing is read off the model's inside, so that what is served is what is judged. Shares are in
points: 100 where a row is right, 0 where it is not.

Dimensions: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moe.bootstrap import Statistic, mean
from moe.decode import Floats
from moe.metrics import squad_scores

Answers = Sequence[Mapping[str, Any]]
BINS = 15


@dataclass(frozen=True, kw_only=True)
class Gold:
    """A labelled row.

    Attributes:
        text: The request's.
        context: Its passage, or None.
        label: Name of its class; None of a span row, or where no class fits.
        spans: Accepted answers of a span row; empty where there is none.
        inside: False where no class fits.
    """

    text: str
    context: str | None = None
    label: str | None = None
    spans: tuple[str, ...] = ()
    inside: bool = True

    @property
    def request(self) -> dict[str, Any]:
        """The row as a request that names no task."""
        return {"text": self.text, "context": self.context}


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric of one side as rows that can be drawn.

    Attributes:
        rows_N: (N,), or (N, 2) for `calibration`.
        statistic: From drawn rows to the number of each draw.
    """

    rows_N: Floats
    statistic: Statistic = field(default=mean)

    @property
    def value(self) -> float:
        """On all rows; 0 without rows."""
        return float(self.statistic(self.rows_N[None])[0]) if len(self.rows_N) else 0.0


def first_task(answer: Mapping[str, Any]) -> str:
    """The task that the gate put first."""
    return str(answer["routing"][0]["task"])


def reached(task: str, answers: Answers) -> list[bool]:
    """Whether each request was answered, and first of all by this task."""
    return [not answer["abstained"] and first_task(answer) == task for answer in answers]


def calibration(rows_DN2: Floats) -> Floats:
    """Expected calibration error of each draw (D,) in points, as `calibration_error` has it.

    Args:
        rows_DN2: Confidence in [0, 1], and 1 where the answer is right; rows of NaN do not count.
    """
    confidence_DN, right_DN = rows_DN2[..., 0], rows_DN2[..., 1]
    known_DN = ~np.isnan(confidence_DN)
    gap_DN = np.where(known_DN, confidence_DN - right_DN, 0.0)
    bin_DN = np.floor(np.nan_to_num(confidence_DN).clip(0, 1) * BINS)  # 1 has a bin of its own
    total_D = sum(np.abs(np.where(bin_DN == b, gap_DN, 0.0).sum(1)) for b in range(BINS + 1))
    error_D: Floats = 100 * total_D / known_DN.sum(1).clip(1)
    return error_D


def _share(values: Sequence[bool] | Any) -> Metric:
    return Metric(rows_N=100.0 * np.array(values, dtype=float))


def task_scores(task: str, is_span: bool, gold: Sequence[Gold], answers: Answers) -> Floats:
    """The main score of every row (N,): F1 of a span, else whether the label or refusal is right.

    An out-of-scope row is right if it is rejected, by its task or by the gate.
    """
    ok_N = np.array(reached(task, answers))
    if is_span:
        return _spans(task, gold, answers)[:, 1] * ok_N
    said = [a["answers"].get(task, {}) for a in answers]
    right = [
        (ok and s.get("label") == g.label)
        if g.inside
        else a["abstained"] or (ok and bool(s.get("out_of_scope")))
        for g, a, s, ok in zip(gold, answers, said, ok_N, strict=True)
    ]
    return 100.0 * np.array(right, dtype=float)


def _spans(task: str, gold: Sequence[Gold], answers: Answers) -> Floats:
    texts = [answer["answers"].get(task, {}).get("text", "") for answer in answers]
    return squad_scores(texts, [row.spans for row in gold])


def task_metrics(
    task: str, is_span: bool, has_outside: bool, gold: Sequence[Gold], answers: Answers
) -> dict[str, Metric]:
    """Every metric of a task's rows by name.

    Args:
        task: Its name.
        is_span: Whether it finds spans.
        has_outside: Whether some rows may fit no class.
        gold: The rows.
        answers: To `Gold.request` of each.
    """
    inside_N = np.array([row.inside for row in gold])
    ok_N = np.array(reached(task, answers))
    routed_N = np.array([first_task(answer) == task for answer in answers])
    refused_N = np.array([answer["abstained"] for answer in answers])
    scores_N = task_scores(task, is_span, gold, answers)
    found: dict[str, Metric] = {}
    if is_span:
        both_N2 = _spans(task, gold, answers) * ok_N[:, None]
        found = {"f1": Metric(rows_N=both_N2[:, 1]), "exact_match": Metric(rows_N=both_N2[:, 0])}
    elif has_outside:
        found["in_scope_accuracy"] = Metric(rows_N=scores_N[inside_N])
        found["oos_recall"] = Metric(rows_N=scores_N[~inside_N])
    else:
        found["accuracy"] = Metric(rows_N=scores_N)
    found["routing_accuracy"] = _share(routed_N[inside_N])
    found["abstain_rate"] = _share(refused_N[inside_N])
    if not is_span:
        found["ece"] = Metric(
            rows_N=_confidences(task, gold, answers)[inside_N], statistic=calibration
        )
    return found


def _confidences(task: str, gold: Sequence[Gold], answers: Answers) -> Floats:
    """(N, 2) confidence and whether it was right; NaN where the task gave no label."""
    rows = []
    for row, answer in zip(gold, answers, strict=True):
        said = answer["answers"].get(task, {})
        label = said.get("label")
        rows.append((np.nan, 0.0) if label is None else (said["score"], float(label == row.label)))
    return np.array(rows)


def expert_of(task: str, answer: Mapping[str, Any]) -> str | None:
    """The expert of a task that weighed most in an answer, None where the task was not first."""
    if answer["abstained"] or first_task(answer) != task:
        return None
    best = max(answer["routing"][0]["experts"], key=lambda expert: float(expert["weight"]))
    return str(best["name"])


def routing_metrics(rows: Sequence[Sequence[str]], answers: Answers) -> dict[str, Metric]:
    """Routing of requests that are labelled with tasks alone.

    Args:
        rows: For each request its tasks, empty where none fits.
        answers: To them.
    """
    fits_N = np.array([bool(tasks) for tasks in rows])
    right_N = np.array([first_task(a) in tasks for tasks, a in zip(rows, answers, strict=True)])
    refused_N = np.array([answer["abstained"] for answer in answers])
    return {
        "accuracy": _share((right_N & ~refused_N)[fits_N]),
        "strangers_refused": _share(refused_N[~fits_N]),
    }
