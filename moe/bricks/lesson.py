"""What one expert is taught by corrections: they, and rows of its own so that it keeps the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moe.bricks.rows import source_digest
from moe.checkpoint import Bundle
from moe.data.cleaning import clean, split_off
from moe.data.prepare import read_split, read_task
from moe.data.sources import Example
from moe.forms import FORMS
from moe.types import InputError, TaskSpec

OWN_ROWS = 2_000
FEWEST = 10  # corrections; of fewer none could be held out
HELD_OUT = 0.1  # share of the corrections that is measured and not trained on


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What an expert is trained on.

    Attributes:
        own: Rows of the task's training data.
        train: Corrections to train on.
        held: Corrections to measure on.
        dropped: Corrections that repeat or contradict the task's own rows, or that validation
            holds.
        origin: For the history: sources, SHA-256 of their files, numbers of rows.
    """

    own: list[Example]
    train: list[Example]
    held: list[Example]
    dropped: int
    origin: dict[str, Any]


def read_lesson(
    bundle: Bundle, task: TaskSpec, folder: Path, root: str | None, own_rows: int
) -> Lesson:
    """The corrections of a task and some of its own rows.

    The own rows come first, so that a correction which contradicts one is dropped, and not the row.
    """
    config, seed = bundle.config, bundle.config.seed_everything
    file = _find_file(folder, task)
    settings = replace(config.tasks[task.name], text=None, context=None, label=None)
    corrections = read_split(task.name, settings, file.name, str(folder), "train")
    place = config.data.root if root is None else root
    try:
        own = read_task(task.name, config.tasks[task.name], place, seed)
    except InputError as error:
        raise InputError(
            f"the training data of {task.name} cannot be read: {error}; name its folder with "
            "--old_root"
        ) from error
    by = FORMS[task.type].GROUP_BY
    train = [_named(row, task) for row in own.train]
    kept, _, _ = clean([*train, *corrections], own.validation, by=by, seed=seed)
    usable = kept[len(train) :]
    if len(usable) < FEWEST:
        raise InputError(
            f"{file}: {len(usable)} of {len(corrections)} corrections are left beside the rows "
            f"that {task.name} has, expected at least {FEWEST}"
        )
    learned, held = split_off(usable, share=HELD_OUT, seed=seed, by=by)
    order = np.random.default_rng(seed).permutation(len(train))[:own_rows]
    return Lesson(
        own=[train[i] for i in order],
        train=learned,
        held=held,
        dropped=len(corrections) - len(usable),
        origin={
            "feedback": str(file.absolute()),
            "rows": len(learned) + len(order),
            "corrections": len(learned),
            "sha256": {file.name: source_digest(file.name, str(folder))},
        },
    )


def _find_file(folder: Path, task: TaskSpec) -> Path:
    file = folder / f"{task.name}.jsonl"
    if file.is_file():
        return file
    if any(folder.glob("feedback-*.jsonl")):
        raise InputError(
            f"--feedback {folder}: a quarantine: review it first with scripts/feedback.py "
            f"--quarantine {folder} --out ROWS, and give ROWS"
        )
    there = sorted(path.name for path in folder.glob("*.jsonl"))
    raise InputError(
        f"--feedback {folder}: no {file.name} there, expected the folder that scripts/feedback.py "
        f"wrote; found {there}"
    )


def _named(row: Example, task: TaskSpec) -> Example:
    """The row with the name of its class where the source has its number, as corrections do."""
    label = row.label
    if label is None or label in task.labels or not label.isdecimal():
        return row
    return replace(row, label=task.labels[int(label)])
