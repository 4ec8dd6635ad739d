"""Metrics of the tasks on finished arrays, and the trivial baselines beside them.

torchmetrics computes what it has; what it has not is here: the SQuAD script's scores with
unanswerable questions, and the CoNLL script's of spans. Both are 0-100, everything else a fraction.
It is imported where it is used, because answering knows this module and needs no torch.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces (Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _f1(prediction: str, answer: str) -> float:
    predicted, expected = normalise_answer(prediction).split(), normalise_answer(answer).split()
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected))


def squad_scores(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> Floats:
    """Exact match and F1 of each row, (rows, 2) in 0-100: the best over the row's answers.

    Args:
        predictions: Predicted answers; empty for "no answer".
        answers: Accepted answers of each row; empty where the question has none (SQuAD 2.0).
    """
    scores = []
    for prediction, accepted in zip(predictions, answers, strict=True):
        candidates = list(accepted) or [""]
        exact = max(normalise_answer(prediction) == normalise_answer(a) for a in candidates)
        scores.append((100.0 * exact, 100.0 * max(_f1(prediction, a) for a in candidates)))
    return np.array(scores).reshape(-1, 2)


def calibration_error(confidence: Floats, correct: Bools, bins: int = 15) -> float:
    """Expected calibration error in [0, 1] (Guo et al. 2017), equal-width bins; 0 if no rows."""
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    if len(confidence) == 0:
        return 0.0
    target = torch.from_numpy(correct).long()
    # A mean of softmaxes can round above 1, which torchmetrics would take for logits.
    preds = torch.from_numpy(confidence.clip(0, 1))
    return float(binary_calibration_error(preds, target, n_bins=bins))


def out_of_scope_curve(scores: Floats, out_of_scope: Bools) -> tuple[float, float]:
    """AUROC and AUPR of a score, out of scope positive; 0.0 where a side is empty."""
    import torch
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    if out_of_scope.all() or not out_of_scope.any():
        return 0.0, 0.0
    # Ranks: torchmetrics would squash scores outside [0, 1] through a sigmoid and tie far ones.
    ranks = np.unique(scores, return_inverse=True)[1] / len(scores)
    preds, target = torch.from_numpy(ranks), torch.from_numpy(out_of_scope).long()
    return float(binary_auroc(preds, target)), float(binary_average_precision(preds, target))


def majority_accuracy(labels: NDArray[np.int64]) -> float:
    """Accuracy of always answering the most frequent class."""
    return float(np.bincount(labels).max() / len(labels)) if len(labels) else 0.0


def constant_span_f1(contexts: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Best mean F1 of one fixed answer for every row: the same words of every context, or none.

    Tried are 1 to 20 words from each of the first 16 words on.
    """
    words = [context.split() for context in contexts]
    best = squad_scores([""] * len(words), answers)[:, 1].mean()
    for length in (1, 2, 3, 5, 8, 12, 20):
        for start in range(16):
            spans = [" ".join(w[start : start + length]) for w in words]
            best = max(best, squad_scores(spans, answers)[:, 1].mean())
    return float(best)


def span_scores(
    predicted: Sequence[Sequence[Hashable]], expected: Sequence[Sequence[Hashable]]
) -> dict[str, float]:
    """Precision, recall and F1 of spans over all rows, 0-100, as in the CoNLL-2000 script.

    A span counts if type, start and end are right. 0 where nothing is predicted or expected.

    Args:
        predicted: Of each row its predicted spans, each once.
        expected: Of each row its true spans.
    """
    right = sum(len(set(p) & set(e)) for p, e in zip(predicted, expected, strict=True))
    num_predicted, num_expected = sum(map(len, predicted)), sum(map(len, expected))
    return {
        "precision": 100 * right / max(num_predicted, 1),
        "recall": 100 * right / max(num_expected, 1),
        "f1": 200 * right / max(num_predicted + num_expected, 1),
    }
