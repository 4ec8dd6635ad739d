"""What is fitted on validation rows and saved with the weights: temperatures and thresholds.

Dimensions: N rows, C in-scope classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe.abstain import Reference, Vectors
from moe.decode import Floats, log_softmax, margins, spread

Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Fitted numbers; a name that is absent has not been fitted.

    Attributes:
        temperature: Divides the logits of a classifier or tagger expert, by expert name; absent
            is 1.
        saturation: Margin at which the logits of a classifier expert saturate, by expert name
            (`moe.decode.spread`); absent changes nothing.
        out_of_scope: By task: rows whose score is above it are rejected; absent rejects none.
        no_answer: By task: a question has no answer if p(none) - p(best span) is above it; absent
            always answers.
        second_task: A further task is chosen too if the gate's mass on it is above this; None
            chooses one task.
        reference: What tells requests that fit no task; None never abstains.
    """

    temperature: dict[str, float] = field(default_factory=dict)
    saturation: dict[str, float] = field(default_factory=dict)
    out_of_scope: dict[str, float] = field(default_factory=dict)
    no_answer: dict[str, float] = field(default_factory=dict)
    second_task: float | None = None
    reference: Reference | None = None

    def temperatures(self, expert_names: Sequence[str]) -> Floats:
        """Temperature (E,) of each expert; 1 where none was fitted."""
        return np.array([self.temperature.get(name, 1.0) for name in expert_names])

    def saturations(self, expert_names: Sequence[str]) -> Floats:
        """Saturation (E,) of each expert; infinity where none was fitted."""
        return np.array([self.saturation.get(name, np.inf) for name in expert_names])

    def set_confidence(self, expert: str, temperature: float, saturation: float | None) -> None:
        """Puts in what `fit_confidence` found for an expert."""
        self.temperature[expert] = temperature
        if saturation is not None:
            self.saturation[expert] = saturation

    def with_experts(self, other: Calibration, names: Mapping[str, str]) -> Calibration:
        """With what `other` has fitted for experts, which are called `names[theirs]` here."""

        def joined(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
            kept = {name: value for name, value in ours.items() if name not in names.values()}
            return kept | {names[name]: theirs[name] for name in theirs if name in names}

        return replace(
            self,
            temperature=joined(self.temperature, other.temperature),
            saturation=joined(self.saturation, other.saturation),
        )

    def to_dict(self) -> dict[str, Any]:
        """The plain numbers, for the checkpoint; the arrays of `reference` are kept apart."""
        grown = {} if self.reference is None else self.reference.grown
        return {
            "temperature": dict(self.temperature),
            **({"saturation": dict(self.saturation)} if self.saturation else {}),
            "out_of_scope": dict(self.out_of_scope),
            "no_answer": dict(self.no_answer),
            "second_task": self.second_task,
            "abstain": None if self.reference is None else self.reference.threshold,
            **({"abstain_grown": dict(grown)} if grown else {}),
        }

    def arrays(self) -> dict[str, Vectors]:
        """The arrays of `reference` by name, empty without it."""
        return {} if self.reference is None else self.reference.arrays()

    @classmethod
    def from_saved(cls, values: Mapping[str, Any], arrays: Mapping[str, Vectors]) -> Calibration:
        """What `to_dict` and `arrays` described."""
        numbers = {**values}
        threshold, reference = numbers.pop("abstain", None), None
        grown = numbers.pop("abstain_grown", {})
        if threshold is not None:
            reference = Reference.from_arrays(arrays, threshold, grown)
        return cls(**numbers, reference=reference)


def fit_temperature(logits_NC: Floats, label_N: Any) -> float:
    """The temperature in [0.05, 20] with the smallest cross-entropy, 1 without rows.

    Guo et al. 2017. A golden-section search: in 1/temperature the cross-entropy is convex.
    """
    if len(logits_NC) == 0:
        return 1.0

    def cross_entropy(inverse: float) -> float:
        return _cross_entropy(logits_NC * inverse, label_N)

    low, high, ratio = 0.05, 20.0, (np.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = cross_entropy(left), cross_entropy(right)
    for _ in range(60):
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = cross_entropy(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = cross_entropy(right)
    return float(2 / (low + high))


def _cross_entropy(logits_NC: Floats, label_N: Any) -> float:
    return -float(log_softmax(logits_NC)[np.arange(len(label_N)), label_N].mean())


# The largest margin of the rows, as a share of the saturation.
FILLED = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.997)


def fit_confidence(logits_NC: Floats, label_N: Any) -> tuple[float, float | None]:
    """Temperature and saturation of an expert with the smallest cross-entropy on these rows.

    The saturation is None where the temperature alone does as well.

    Args:
        logits_NC: In-scope logits.
        label_N: In-scope classes.
    """
    best, chosen = fit_temperature(logits_NC, label_N), None
    if len(logits_NC) == 0 or logits_NC.shape[1] < 2:
        return best, None
    least = _cross_entropy(logits_NC / best, label_N)
    largest = float(margins(logits_NC).max())
    for filled in FILLED if largest > 0 else ():
        wide_NC = spread(logits_NC, largest / filled)
        temperature = fit_temperature(wide_NC, label_N)
        found = _cross_entropy(wide_NC / temperature, label_N)
        if found < least:
            least, best, chosen = found, temperature, largest / filled
    return best, chosen


def recall_threshold(scores: Floats, out_of_scope: Bools, recall: float) -> float:
    """The largest threshold at which at least `recall` of the out-of-scope rows lie above it.

    Halfway to the next in-scope or out-of-scope score below, so that it does not sit on a row.
    """
    positives = np.sort(scores[out_of_scope])[::-1]
    needed = max(int(np.ceil(recall * len(positives) - 1e-9)), 1)
    last = positives[needed - 1]
    below = scores[scores < last]
    return float((last + below.max()) / 2) if len(below) else float(last - 1.0)


def fit_out_of_scope(scores_N: Floats, out_of_scope_N: Bools, recall: float) -> float | None:
    """Threshold that rejects a share `recall` of the out-of-scope rows; None without such rows."""
    if not out_of_scope_N.any():
        return None
    return recall_threshold(scores_N, out_of_scope_N, recall)


def fit_no_answer(margin_N: Floats, f1_span_N: Floats, f1_none_N: Floats) -> float:
    """Threshold on p(none) - p(best span) with the best mean F1; between two rows' margins.

    Args:
        margin_N: p(none) - p(best span) of each question.
        f1_span_N: F1 of its best span.
        f1_none_N: F1 of answering nothing: 100 or 0.
    """
    order = np.argsort(margin_N)
    margins = margin_N[order]
    # Rows [0, k) are answered, the others not; no threshold parts rows of equal margin.
    answered = np.concatenate([[0.0], np.cumsum(f1_span_N[order])])
    refused = np.concatenate([np.cumsum(f1_none_N[order][::-1])[::-1], [0.0]])
    edges = np.concatenate([[margins[0] - 1.0], margins, [margins[-1] + 1.0]])
    total = np.where(edges[:-1] < edges[1:], answered + refused, -np.inf)
    best = int(np.argmax(total))
    return float((edges[best] + edges[best + 1]) / 2)


def fit_second_task(single_N: Floats, spurious: float = 0.007) -> float:
    """Threshold on the gate's mass above which a further task answers too.

    The lowest at which at most a share `spurious` of the rows of one task get a second answer: a
    gate splits its mass unevenly over two wanted tasks, so what lies above it is needed.

    Args:
        single_N: Largest mass on a task that could answer and is not the first choice, for rows
            of one task.
        spurious: In [0, 1].
    """
    return float(np.quantile(single_N, 1 - spurious, method="higher"))
