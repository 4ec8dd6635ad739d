"""From logits to answers, in numpy alone, so that every backend decodes alike.

Dimensions: N rows, C classes, L tokens, P (row, expert) pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Logits = NDArray[np.float32] | NDArray[np.float64]  # as an expert gave them
MAX_ANSWER_TOKENS = 30


def log_softmax(logits: Floats, axis: int = -1) -> Floats:
    """Natural log of the softmax; -inf stays -inf."""
    shifted = logits - logits.max(axis, keepdims=True)
    total: Floats = np.log(np.exp(shifted).sum(axis, keepdims=True))
    return shifted - total


def log_sum_exp(logits: Floats) -> Floats:
    """Over the last dimension."""
    top = logits.max(-1)
    total: Floats = top + np.log(np.exp(logits - top[..., None]).sum(-1))
    return total


@dataclass(frozen=True, kw_only=True)
class WindowSaid:
    """What the chosen experts of one task said of one window of a request; K experts.

    Attributes:
        experts: Their columns in the gate.
        weights: w, summing to 1.
        logits: Of each expert: (C,), (L, 2) or (L, C), positions as in the window.
        offset: Add it to a position to get the token of the whole context.
    """

    experts: Sequence[int]
    weights: Sequence[float]
    logits: Sequence[Floats]
    offset: int

    @property
    def num_text(self) -> int:
        """Tokens of the text in a first window: its context begins two special tokens later."""
        return -self.offset - 2


@dataclass(frozen=True, kw_only=True)
class ClassifierVotes:
    """What the chosen experts of a classifier task said, one entry per (row, expert) pair.

    Attributes:
        row_P: Row of each pair.
        expert_P: Column of the expert in the gate.
        weight_P: w, summing to 1 over the pairs of a row.
        logits_PC: In-scope classes first, then the out-of-scope class if the task has one.
    """

    row_P: NDArray[np.int64]
    expert_P: NDArray[np.int64]
    weight_P: Floats
    logits_PC: Floats


def stack_votes(rows: Sequence[WindowSaid]) -> ClassifierVotes:
    """The votes of classifier experts on some rows as arrays; at least one row."""
    sizes = [len(row.experts) for row in rows]
    return ClassifierVotes(
        row_P=np.repeat(np.arange(len(rows)), sizes),
        expert_P=np.array([expert for row in rows for expert in row.experts], dtype=np.int64),
        weight_P=np.array([weight for row in rows for weight in row.weights]),
        logits_PC=np.stack([logits for row in rows for logits in row.logits]),
    )


def margins(logits_NC: Floats) -> Floats:
    """What the largest logit of each row (N,) has above the second, of at least two."""
    top_N2 = np.partition(logits_NC, -2, axis=1)[:, -2:]
    found_N: Floats = top_N2[:, 1] - top_N2[:, 0]
    return found_N


def spread(logits_NC: Floats, saturation_N: Floats | float) -> Floats:
    """Logits times `atanh(m / s) / (m / s)`; m is a row's margin (`margins`), s the saturation.

    Training brings the margins of the rows that it has learned close to one value, and there a
    small difference tells as much as a large one below: the inverse of that squeeze. The order of
    the classes stays.

    Args:
        logits_NC: Of at least two classes.
        saturation_N: Of each row or of all; infinity changes nothing.
    """
    ratio_N = np.clip(margins(logits_NC) / saturation_N, 1e-6, 0.9999)
    return logits_NC * (np.arctanh(ratio_N) / ratio_N)[:, None]


def mix_classes(
    votes: ClassifierVotes,
    temperature_P: Floats,
    saturation_P: Floats,
    num_rows: int,
    num_labels: int,
) -> Floats:
    """`sum_e w_e softmax(z_e / temperature_e)` (rows, labels) over the in-scope classes.

    Args:
        votes: Of all rows.
        temperature_P: Temperature of each pair's expert.
        saturation_P: Its saturation (`spread`), before that.
        num_rows: Rows of the result; every one has a pair.
        num_labels: In-scope classes.
    """
    logits_PC = votes.logits_PC[:, :num_labels]
    if np.isfinite(saturation_P).any():
        logits_PC = spread(logits_PC, saturation_P)
    logits_PC = logits_PC / temperature_P[:, None]
    mixed = np.zeros((num_rows, num_labels))
    np.add.at(mixed, votes.row_P, votes.weight_P[:, None] * np.exp(log_softmax(logits_PC)))
    return mixed


OUT_OF_SCOPE_CLASS = 0.5  # weight of the trained class in the out-of-scope score


def out_of_scope_scores(votes: ClassifierVotes, num_rows: int, num_labels: int) -> Floats:
    """Score (rows,), larger for rows that fit no label: `0.5 z_oos - logsumexp(in-scope z)`.

    In nats, averaged with the experts' weights. With 0 for 0.5 it is the energy (Liu et al. 2020,
    arXiv 2010.03759, eq. 4), with 1 the log-odds of the trained out-of-scope class, which knows
    only kinds of rows that it was shown; between them it separates best (`docs/results.md`).
    """
    scores = np.zeros(num_rows)
    score_P = OUT_OF_SCOPE_CLASS * votes.logits_PC[:, num_labels] - log_sum_exp(
        votes.logits_PC[:, :num_labels]
    )
    np.add.at(scores, votes.row_P, votes.weight_P * score_P)
    return scores


@dataclass(frozen=True, kw_only=True)
class SpanChoice:
    """The best span of a request.

    Attributes:
        start, end: First and last token of the whole context; (-1, -1) if no span is valid.
        score: Its probability in its window.
        null: Probability that there is no answer, the smallest over the windows.
    """

    start: int
    end: int
    score: float
    null: float


def best_span(
    windows: Sequence[tuple[Sequence[float], Sequence[Floats], int]],
    max_tokens: int = MAX_ANSWER_TOKENS,
) -> SpanChoice:
    """The most probable valid span over windows and experts.

    Within a window `sum_e w_e p_e(start) p_e(end)` over spans in the context of at most
    `max_tokens` tokens; position 0 stands for no answer.

    Args:
        windows: For each window the experts' weights, their logits (L, 2) with -inf outside the
            context, and what to add to a position to get the token of the whole context.
        max_tokens: Longest answer.
    """
    best = SpanChoice(start=-1, end=-1, score=0.0, null=1.0)
    null = 1.0
    for weights, logits, offset in windows:
        joint_LL: Floats | float = 0.0
        for weight, logits_L2 in zip(weights, logits, strict=True):
            starts, ends = np.exp(log_softmax(logits_L2.astype(np.float64), axis=0)).T
            joint_LL = joint_LL + weight * np.outer(starts, ends)
        assert isinstance(joint_LL, np.ndarray)
        null = min(null, float(joint_LL[0, 0]))
        joint_LL[0, :] = 0.0  # a span that starts at [CLS] is no span
        band_LL = np.triu(joint_LL) - np.triu(joint_LL, max_tokens)
        start, end = divmod(int(band_LL.argmax()), band_LL.shape[1])
        if band_LL[start, end] > best.score:
            score = float(band_LL[start, end])
            best = SpanChoice(start=start + offset, end=end + offset, score=score, null=1.0)
    return SpanChoice(start=best.start, end=best.end, score=best.score, null=null)


def span_text(choice: SpanChoice, context: str, offsets: Sequence[Sequence[int]]) -> str:
    """The characters of a chosen span; empty if no span was valid."""
    if choice.start < 0:
        return ""
    return context[offsets[choice.start][0] : offsets[choice.end][1]]
