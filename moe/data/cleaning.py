"""Rows that training must not hold: copies, contradictions, and what validation asks."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from moe.data.formats import By, Example
from moe.types import InputError


@dataclass(frozen=True, kw_only=True)
class CleaningReport:
    """What cleaning did, in rows.

    Attributes:
        kept_train: Training rows that are left.
        kept_validation: Validation rows.
        duplicates: Training rows dropped since an earlier one says the same.
        contradictions: Training rows dropped since an earlier one says otherwise.
        overlap: Training rows dropped since validation holds their text or context.
        short: Training rows dropped since their text has too few words.
    """

    kept_train: int
    kept_validation: int
    duplicates: int
    contradictions: int
    overlap: int
    short: int = 0

    def __str__(self) -> str:
        return (
            f"{self.kept_train} training and {self.kept_validation} validation rows; dropped "
            f"{self.duplicates} duplicates, {self.contradictions} contradictions, "
            f"{self.overlap} that validation holds"
            f"{f', {self.short} with too few words' if self.short else ''}"
        )


def drop_duplicates(examples: Sequence[Example]) -> tuple[list[Example], int]:
    """Rows without copies (same text but for case, context, and target), the first stays; and how
    many were dropped."""
    return _first_of_each(examples, lambda row: (*_input(row), row.label, row.answers, row.tags))


def drop_contradictions(examples: Sequence[Example]) -> tuple[list[Example], int]:
    """Rows with one target per text and context, the first stays; and how many were dropped.

    Meant for rows without duplicates, which would be counted here too.
    """
    return _first_of_each(examples, _input)


def drop_overlap(
    train: Sequence[Example], validation: Sequence[Example], by: By
) -> tuple[list[Example], int]:
    """Training rows whose text (but for case) or context is not in validation; and how many were
    dropped."""
    held_out = {_group(row, by) for row in validation}
    kept = [row for row in train if _group(row, by) not in held_out]
    return kept, len(train) - len(kept)


def split_off(
    examples: Sequence[Example], *, share: float = 0.1, seed: int, by: By
) -> tuple[list[Example], list[Example]]:
    """Training and validation rows, both in their old order, that share no text or context.

    Which groups go depends only on the seed and their text, not on the order of the rows. A label
    keeps a training row as long as that leaves any group for validation.

    Args:
        examples: At least two groups of rows.
        share: Fraction of the groups that goes to validation, in (0, 1); at least one goes and
            one stays.
        seed: Of the choice.
        by: What makes a group: the text (but for case) or the context.
    """
    groups: dict[str, list[Example]] = {}
    for row in examples:
        groups.setdefault(_group(row, by), []).append(row)
    if len(groups) < 2:
        raise InputError(
            f"validation cannot be split off: got {len(examples)} rows with "
            f"{len(groups)} different {by}s, expected at least 2; name a validation "
            "source"
        )
    order = sorted(groups, key=lambda key: _digest(seed, key))
    wanted = max(1, min(round(share * len(groups)), len(groups) - 1))
    left = Counter(row.label for row in examples)
    chosen: set[str] = set()
    for key in order:
        labels = Counter(row.label for row in groups[key])
        if len(chosen) < wanted and all(left[label] > n for label, n in labels.items()):
            left -= labels
            chosen.add(key)
    chosen = chosen or set(order[:1])
    return (
        [row for row in examples if _group(row, by) not in chosen],
        [row for row in examples if _group(row, by) in chosen],
    )


def clean(
    train: Sequence[Example],
    validation: Sequence[Example] | None,
    *,
    by: By,
    seed: int,
    share: float = 0.1,
    min_words: int = 1,
) -> tuple[list[Example], list[Example], CleaningReport]:
    """Training rows without copies, contradictions and what validation holds; validation; a report.

    Validation rows that are given stay as they are, so that a published set keeps its size.
    Without them (None), `share` of the clean training rows is split off. The two share no text, or
    no context, as `by` says. Training rows alone lose texts of fewer than `min_words` words.
    """
    rows, duplicates = drop_duplicates(train)
    rows, contradictions = drop_contradictions(rows)
    if validation is None:
        rows, held_out = split_off(rows, share=share, seed=seed, by=by)
        overlap = 0
    else:
        held_out = list(validation)
        rows, overlap = drop_overlap(rows, held_out, by)
    if not rows:
        raise InputError(
            f"no training rows are left: got {len(train)}, of which validation holds "
            f"the {by} of {overlap}; expected different rows in the two"
        )
    long = [row for row in rows if len(row.text.split()) >= min_words]
    if not long:
        raise InputError(
            f"min_words {min_words}: none of {len(rows)} training rows has so many; take fewer"
        )
    return (
        long,
        held_out,
        CleaningReport(
            kept_train=len(long),
            kept_validation=len(held_out),
            duplicates=duplicates,
            contradictions=contradictions,
            overlap=overlap,
            short=len(rows) - len(long),
        ),
    )


def _input(row: Example) -> tuple[Hashable, ...]:
    return row.text.casefold(), row.context


def _group(row: Example, by: By) -> str:
    return row.text.casefold() if by == "text" else row.context or ""


def _digest(seed: int, key: str) -> bytes:
    # Not hash(), which differs from process to process.
    return hashlib.sha256(f"{seed}\0{key}".encode()).digest()


def _first_of_each(
    examples: Sequence[Example], key: Callable[[Example], Hashable]
) -> tuple[list[Example], int]:
    first: dict[Hashable, Example] = {}
    for row in examples:
        first.setdefault(key(row), row)
    return list(first.values()), len(examples) - len(first)
