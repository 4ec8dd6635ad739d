"""What is asked in a rehearsal: usual requests, and a phrasing of an alarm that no row has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from moe.release.rows import read_rows
from moe.release.scores import Gold
from moe.release.suite import load_suite

TASK, LABEL = "intent", "set_alarm"
_STARTS = ("ping me at", "give me a ping at", "can you ping me at", "please ping me at",
           "just ping me at", "i need a ping at")  # fmt: skip
_TIMES = ("five", "six", "seven", "eight", "nine", "ten", "eleven", "noon", "half past six",
          "half past seven", "quarter to eight", "6 am", "7:30", "5 pm", "8:15",
          "9 sharp")  # fmt: skip
_ENDS = ("", " tomorrow", " on monday", " on sunday", " please", " every weekday")
NEW_SHARE = 0.3  # of the requests once people use the new phrasing

Request = dict[str, Any]


def new_phrasing(seed: int = 0) -> list[str]:
    """576 different texts, in random order."""
    texts = [f"{start} {time}{end}" for start, time, end in product(_STARTS, _TIMES, _ENDS)]
    return [texts[i] for i in np.random.default_rng(seed).permutation(len(texts))]


def suite_rows(suite: str, root: str | None = None) -> dict[str, list[Gold]]:
    """All labelled rows of a suite by task, also those beyond its limit, so that the mix is theirs.

    Args:
        suite: YAML file.
        root: Folder of relative sources instead of the suite's own.
    """
    return read_rows(replace(load_suite(suite), rows=None), root).tasks


def usual(rows: Sequence[Gold], count: int, seed: int = 0) -> list[Request]:
    """Requests drawn from the rows with replacement, in their mix of tasks."""
    chance = np.random.default_rng(seed)
    return [rows[i].request for i in chance.integers(len(rows), size=count)]


def changed(rows: Sequence[Gold], texts: Sequence[str], count: int, seed: int = 1) -> list[Request]:
    """Requests of which `NEW_SHARE` are of the new phrasing, in random order."""
    new = round(NEW_SHARE * count)
    chance = np.random.default_rng(seed)
    mixed = usual(rows, count - new, seed) + [{"text": str(t)} for t in chance.choice(texts, new)]
    return [mixed[i] for i in chance.permutation(count)]


def flipped(rows: Sequence[Gold], labels: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Texts in scope, each with a label that is wrong, again and again with another number."""
    inside = [row for row in rows if row.inside]
    found = []
    for number in range(count):
        row = inside[number % len(inside)]
        assert row.label is not None
        wrong = labels[(labels.index(row.label) + 1) % len(labels)]
        found.append((f"{row.text} {number}", wrong))
    return found
