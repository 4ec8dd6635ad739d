"""Routers that need no network, to compare the gate with: a rule, and TF-IDF with regression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moe.data.routing import RoutingRow


def by_rule(rows: Sequence[RoutingRow], longest_intent: int = 10) -> list[str]:
    """What a hand-written router does: a passage means a question on it; without one, a question
    mark or few words mean an intent, and everything else is an opinion.

    Args:
        rows: Requests.
        longest_intent: Words up to which a text without a question mark is an intent.
    """
    return [
        "qa"
        if row.context is not None
        else "intent"
        if row.text.endswith("?") or len(row.text.split()) <= longest_intent
        else "sentiment"
        for row in rows
    ]


def fit_rule(train: Sequence[RoutingRow]) -> int:
    """The length of `by_rule` with the most training rows right."""
    lengths = range(2, 31)
    right = [share_right(train, by_rule(train, length)) for length in lengths]
    return lengths[int(np.argmax(right))]


def _words(row: RoutingRow) -> str:
    return f"{row.text} {'withpassage' if row.context is not None else 'nopassage'}"


def by_words(train: Sequence[RoutingRow], rows: Sequence[RoutingRow]) -> list[str]:
    """TF-IDF of words and pairs of words with logistic regression (scikit-learn's defaults).

    Args:
        train: Requests of known tasks; of several tasks the first is learned.
        rows: Requests to route.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    router = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(max_iter=1000)
    )
    router.fit([_words(row) for row in train], [row.tasks[0] for row in train])
    chosen: list[str] = router.predict([_words(row) for row in rows]).tolist()
    return chosen


def share_right(rows: Sequence[RoutingRow], chosen: Sequence[str]) -> float:
    """Share of rows whose choice is one of their tasks."""
    return float(np.mean([name in row.tasks for row, name in zip(rows, chosen, strict=True)]))
