"""One expert trained on corrections that were let out of quarantine, and on rows of its own.

What this can mend is the answer of an expert. Which task answers, and which expert inside it, the
gate decides, which is not touched: corrections that it sends elsewhere are counted and said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from moe.bricks.fit import FitConfig, fit_expert
from moe.bricks.history import Changed, record
from moe.bricks.lesson import OWN_ROWS, Lesson, read_lesson
from moe.bricks.measuring import collect_here, measured, refit
from moe.bricks.states import encode_rows
from moe.bricks.tasks import find_expert
from moe.bricks.update import copied_model, draw_anew
from moe.checkpoint import Bundle
from moe.config import OptimizerConfig
from moe.data.sources import Example
from moe.data.tables import build_table
from moe.decode import Floats
from moe.measure import build_test_tables
from moe.predict import MixtureOfExperts
from moe.profile import validation_profile
from moe.release.scores import Answers, Gold, expert_of, first_task, task_scores
from moe.types import TaskSpec

CORRECT = FitConfig(epochs=4, optimizer=OptimizerConfig(expert_lr=2e-4))


@dataclass(frozen=True, kw_only=True)
class Reached:
    """Where the gate sends corrections of a task.

    Attributes:
        mine: They reach the expert.
        others: By expert of the same task that they reach.
        elsewhere: By task that they go to instead, and `no task` of those that are refused.
    """

    mine: int
    others: Counter[str]
    elsewhere: Counter[str]


def update_from_feedback(
    bundle: Bundle,
    *,
    expert: str,
    folder: str | Path,
    root: str | None = None,
    fit: FitConfig = CORRECT,
    own_rows: int = OWN_ROWS,
    fresh: bool = False,
) -> Changed:
    """Trains one expert on corrections and a sample of its task's training rows.

    Temperatures and thresholds of the task are fitted again on its validation rows, and the profile
    for `scripts/monitor.py` is made anew, as after a training.

    Args:
        bundle: A trained model.
        expert: Its name.
        folder: What `scripts/feedback.py` wrote.
        root: Folder of the training data's relative sources; None is that of the training.
        fit: How it is trained.
        own_rows: Most rows of the training data.
        fresh: Whether to draw its weights anew first, from `fit.seed`.

    Raises:
        InputError: There is no such expert, no or too few corrections of its task, or its training
            data cannot be read.
    """
    task = find_expert(bundle, expert)
    lesson = read_lesson(bundle, task, Path(folder), root, own_rows)
    after = copied_model(bundle)
    if fresh:
        draw_anew(after, expert, fit.seed)
    number = bundle.model.tasks.index(task)
    cache = Path(bundle.config.data.cache)
    table = build_table([*lesson.own, *lesson.train], task, number, bundle.tokenizer, cache)
    module: Any = after.model.experts[expert]
    losses = fit_expert(module, encode_rows(bundle, table), bundle.tokenizer, fit)
    after = _validated(after, task, root)
    steps = f"{expert}: {len(losses)} steps, loss {losses[0]:.3f} -> {np.mean(losses[-20:]):.3f}"
    return record(
        bundle,
        after,
        operation="update",
        about={"expert": expert, "steps": len(losses), "fresh": fresh, "feedback": True},
        data=lesson.origin,
        notes=(*_notes(bundle, after, lesson, task, expert), steps),
    )


def _validated(bundle: Bundle, task: TaskSpec, root: str | None) -> Bundle:
    """Refitted on the validation rows of the task, with its metrics and a profile of all tasks."""
    tables = build_test_tables(bundle, (), root)
    if bundle.profile is None:
        tables = [table for table in tables if table.spec.name == task.name]
    said = [collect_here(bundle, table) for table in tables]
    own = [table.spec.name for table in tables].index(task.name)
    bundle = refit(bundle, tables[own], bundle.config.tasks[task.name], said[own])
    bundle = measured(bundle, tables[own], said[own])
    if bundle.profile is None:
        return bundle
    profile = validation_profile(tables, said, bundle.calibration, bundle.model.tasks)
    return replace(bundle, profile=profile)


# --- what is said of it -------------------------------------------------------------------------


def _notes(
    before: Bundle, after: Bundle, lesson: Lesson, task: TaskSpec, expert: str
) -> tuple[str, ...]:
    """What was learned from, how many corrections are right now, and what cannot be mended."""
    rows = [*lesson.train, *lesson.held]
    asked, again = _ask(before, rows), _ask(after, rows)
    held = np.arange(len(rows)) >= len(lesson.train)
    scores = [_scores(task, rows, answers) for answers in (asked, again)]
    shares = [
        f"{name} {scores[0][chosen].mean():.0f} % -> {scores[1][chosen].mean():.0f} %"
        for name, chosen in (("trained on", ~held), ("held out", held))
    ]
    return (
        f"corrections of {task.name}: {len(lesson.train)} to train on beside {len(lesson.own)} of "
        f"its own rows, {len(lesson.held)} held out; {lesson.dropped} left out, which repeat or "
        "contradict its own rows",
        f"right through the gate: {', '.join(shares)}",
        *reach_lines(where_they_go(asked, task, expert), task, expert),
    )


def _ask(bundle: Bundle, rows: Sequence[Example]) -> Answers:
    """The answers to the rows as requests that name no task."""
    requests = [{"text": row.text, "context": row.context} for row in rows]
    answers: Answers = MixtureOfExperts(bundle, "cpu").predict(requests)
    return answers


def _scores(task: TaskSpec, rows: Sequence[Example], answers: Answers) -> Floats:
    gold = [
        Gold(
            text=row.text,
            context=row.context,
            label=None if row.label == task.out_of_scope else row.label,
            spans=tuple(answer.text for answer in row.answers),
            inside=row.label is None or row.label != task.out_of_scope,
        )
        for row in rows
    ]
    return task_scores(task.name, task.type == "span", gold, answers)


def where_they_go(answers: Answers, task: TaskSpec, expert: str) -> Reached:
    """Where the gate sent corrections of a task."""
    mine, others, elsewhere = 0, Counter[str](), Counter[str]()
    for answer in answers:
        who = expert_of(task.name, answer)
        if who is None:
            elsewhere["no task" if answer["abstained"] else first_task(answer)] += 1
        elif who != expert:
            others[who] += 1
        else:
            mine += 1
    return Reached(mine=mine, others=others, elsewhere=elsewhere)


def reach_lines(found: Reached, task: TaskSpec, expert: str) -> list[str]:
    """What an update of the expert can mend, and what not."""
    wrong = sum(found.elsewhere.values())
    total = found.mine + sum(found.others.values()) + wrong
    lines = [f"reach {expert}, which this update changes: {found.mine} of {total}"]
    for name, count in found.others.most_common():
        lines.append(f"reach {name}, whose answers stay: {count}; update it as well")
    if wrong:
        counts = ", ".join(f"{name} {count}" for name, count in found.elsewhere.most_common())
        lines.append(
            f"routed elsewhere: {wrong} ({counts}); the gate chooses, and no update of an expert "
            f"moves it. Requests that name {task.name} in `tasks` get its new answers; a training "
            "with such texts as routing rows (data.routing) can teach the gate"
        )
    return lines
