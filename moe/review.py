"""What of a quarantine may be learned from: sources that flip labels are left out, and quarrels."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe.feedback import Correction, Held
from moe.types import InputError

MIN_ROWS = 10  # corrections from which a source is judged
MAX_FLIPPED = 0.5  # share of them that may contradict sure answers


@dataclass(frozen=True, kw_only=True)
class Review:
    """What a quarantine holds.

    Attributes:
        usable: Each correction once.
        left_out: By reason the number of corrections that are not.
    """

    usable: list[Correction]
    left_out: dict[str, int]


def sureness(ckpt: str) -> dict[str, float]:
    """By task the score from which answers of a checkpoint count as sure.

    Raises:
        InputError: It cannot be read, or was saved without a profile of its validation.
    """
    from moe.checkpoint import load_bundle  # here: a review without --ckpt needs no torch
    from moe.profile import usual_confidence

    bundle = load_bundle(ckpt)
    if bundle.profile is None:
        raise InputError(
            f"--ckpt {ckpt}: saved without a profile of its validation; review without --ckpt"
        )
    return usual_confidence(bundle.profile, bundle.model.tasks)


def review(
    held: Sequence[Held], trusted: Collection[str] = (), sure: Mapping[str, float] | None = None
) -> Review:
    """The corrections that may be learned from.

    Left out are requests that were corrected in different ways, and every correction of a source
    whose corrections mostly contradict answers that the model is sure of: whoever flips labels
    does that, but so does who reports a new mistake of a sure model, hence `trusted`.

    Args:
        held: In quarantine.
        trusted: Sources that somebody has looked at.
        sure: By task the score from which an answer counts as sure
            (`moe.profile.usual_confidence`); `moe.feedback.CONFIDENT` for tasks without one.
    """
    by_source, rights = defaultdict(list), defaultdict(set)
    for row in held:
        by_source[row.source].append(_contradicts(row, sure or {}))
        rights[_asked(row.correction)].add((row.correction.label, row.correction.answer))
    flipping = {
        source
        for source, contradicts in by_source.items()
        if source not in trusted
        and len(contradicts) >= MIN_ROWS
        and sum(contradicts) > MAX_FLIPPED * len(contradicts)
    }
    usable: dict[Correction, None] = {}
    left_out: Counter[str] = Counter()
    for row in held:
        if row.source in flipping:
            left_out[f"source {row.source} contradicts sure answers"] += 1
        elif len(rights[_asked(row.correction)]) > 1:
            left_out["corrected in different ways"] += 1
        elif row.correction in usable:
            left_out["sent before"] += 1
        else:
            usable[row.correction] = None
    return Review(usable=list(usable), left_out=dict(left_out))


def _contradicts(row: Held, sure: Mapping[str, float]) -> bool:
    limit = sure.get(row.correction.task)
    if limit is None or row.differs is None:
        return row.contradicts
    return row.differs and float(row.said["score"]) >= limit


def _asked(correction: Correction) -> tuple[str, str | None, str]:
    return " ".join(correction.text.casefold().split()), correction.context, correction.task


def write_rows(corrections: Sequence[Correction], folder: Path) -> list[Path]:
    """One JSON-lines file for each task, a SOURCE of its rows (`docs/data.md`)."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for task in dict.fromkeys(correction.task for correction in corrections):
        lines = [json.dumps(_row(c)) for c in corrections if c.task == task]
        path = folder / f"{task}.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        written.append(path)
    return written


def _row(correction: Correction) -> dict[str, str | None]:
    if correction.answer is None:
        return {"text": correction.text, "label": correction.label}
    return {
        "question": correction.text,
        "context": correction.context,
        "answer": correction.answer,
    }
