"""What a candidate must share with the baseline whatever its scores are."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from moe.release.rules import Verdict
from moe.release.scores import Answers
from moe.release.sides import Side
from moe.release.suite import Structure
from moe.types import TaskSpec

Problems = list[str]


def judge_structure(candidate: Side, baseline: Side | None, wanted: Structure) -> list[Verdict]:
    """A verdict on each part of the structure; what has no baseline to compare with passes."""
    found = [_verdict("structure/whole", "any", _holes(candidate))]
    if baseline is None:
        return found
    checks: Mapping[str, Callable[[Side, Side], Problems]] = {
        "tasks": _tasks,
        "labels": _labels_same if wanted.labels == "same" else _labels_kept,
        "experts": _experts,
        "tokenizer": _tokenizer,
        "fitted": _fitted,
    }
    for name, check in checks.items():
        rule = getattr(wanted, name)
        problems = [] if rule == "any" else check(candidate, baseline)
        found.append(_verdict(f"structure/{name}", rule, problems))
    return found


def judge_finite(answers: Answers) -> Verdict:
    """Whether every number in the answers is one."""
    wrong = sum(not all(map(math.isfinite, _numbers(answer))) for answer in answers)
    problems = [f"{wrong} of {len(answers)} answers hold a number that is not finite"]
    return _verdict("structure/finite", "finite", problems if wrong else [])


def _verdict(name: str, rule: str, problems: Problems) -> Verdict:
    outcome = "refused" if problems else "passed"
    return Verdict(name=name, outcome=outcome, reason="; ".join(problems) or "as wanted", rule=rule)


def _numbers(value: Any) -> Iterable[float]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, float):
        yield value


def _by_name(side: Side) -> dict[str, TaskSpec]:
    return {task.name: task for task in side.model.tasks}


def _shared(ours: Side, theirs: Side) -> list[tuple[TaskSpec, TaskSpec]]:
    mine = _by_name(ours)
    return [(mine[task.name], task) for task in theirs.model.tasks if task.name in mine]


def _holes(side: Side) -> Problems:
    """Experts that a model names and does not hold."""
    if side.backend != "onnx":
        return []  # a checkpoint is read strictly
    held = side.bundle.graph.expert_names
    if tuple(held) == side.experts:
        return []
    return [f"the graph holds the experts {list(held)}, its config names {list(side.experts)}"]


def _tasks(ours: Side, theirs: Side) -> Problems:
    mine = _by_name(ours)
    found = [f"the task {t.name!r} is missing" for t in theirs.model.tasks if t.name not in mine]
    for our, their in _shared(ours, theirs):
        if our.type != their.type:
            found.append(f"the task {our.name!r} is a {our.type}, was a {their.type}")
        if their.out_of_scope is not None and our.out_of_scope is None:
            found.append(f"the task {our.name!r} rejects nothing as out of scope any more")
    return found


def _labels_kept(ours: Side, theirs: Side) -> Problems:
    found = []
    for our, their in _shared(ours, theirs):
        missing = sorted(set(their.labels) - set(our.labels))
        if missing:
            found.append(f"the task {our.name!r} lacks the labels {missing[:10]}")
    return found


def _labels_same(ours: Side, theirs: Side) -> Problems:
    found = _labels_kept(ours, theirs)
    for our, their in _shared(ours, theirs):
        added = sorted(set(our.labels) - set(their.labels))
        if added:
            found.append(f"the task {our.name!r} has the new labels {added[:10]}")
        elif set(our.labels) == set(their.labels) and our.labels != their.labels:
            pairs = zip(our.labels, their.labels, strict=True)
            at = next(i for i, (mine, other) in enumerate(pairs) if mine != other)
            found.append(
                f"the task {our.name!r} has its labels in another order: label {at} is "
                f"{our.labels[at]!r}, was {their.labels[at]!r}"
            )
    return found


def _experts(ours: Side, theirs: Side) -> Problems:
    return [
        f"the task {our.name!r} has {our.num_experts} experts, had {their.num_experts}"
        for our, their in _shared(ours, theirs)
        if our.num_experts < their.num_experts
    ]


def _tokenizer(ours: Side, theirs: Side) -> Problems:
    mine, other = (json.loads(side.bundle.tokenizer.to_json()) for side in (ours, theirs))
    parts = sorted(k for k in mine.keys() | other.keys() if mine.get(k) != other.get(k))
    return [f"the tokenizers differ in {', '.join(parts)}"] if parts else []


def _fitted(ours: Side, theirs: Side) -> Problems:
    """Fitted numbers that are gone."""
    mine, other = ours.bundle.calibration, theirs.bundle.calibration
    found = []
    shared = {our.name for our, _ in _shared(ours, theirs)}
    for name in ("out_of_scope", "no_answer"):
        gone = sorted((getattr(other, name).keys() - getattr(mine, name).keys()) & shared)
        if gone:
            found.append(f"no {name} threshold is fitted for {gone}")
    for name, what in (("reference", "abstaining"), ("second_task", "second answers")):
        if getattr(other, name) is not None and getattr(mine, name) is None:
            found.append(f"{what} is not fitted")
    if other.temperature and not mine.temperature:
        found.append("no temperature is fitted")
    return found
