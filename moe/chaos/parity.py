"""Two processes against one: the same rows, gradients, losses, averaged weights, metrics."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from moe.chaos.process import run_folder, train
from moe.chaos.processes import SPARSE, STEADY, after, devices, recorded, run, steps
from moe.chaos.project import make_project
from moe.chaos.report import Report

# A step that is encoded in several groups estimates its balance from the groups so far, which are
# others on two ranks: there the balance is off.
_UNBALANCED = ["--model.loss.switch", 0, "--model.loss.prior", 0]
KINDS: dict[str, list[object]] = {
    "at once": [],
    "in groups": ["--data.max_tokens", 48, "--data.batch_size", 18, *_UNBALANCED],
}


def parity(scratch: Path, count: int = 50, kinds: Sequence[str] = tuple(KINDS)) -> Report:
    """Two processes and one, with the same rows in a step, without dropout, in float32.

    The weights at the end are the mean of those of the last half of the steps.

    Args:
        scratch: Where to work.
        count: Optimizer steps.
        kinds: How a step is encoded, names of `KINDS`.
    """
    report = Report(name="parity")
    config = make_project(scratch, data=SPARSE, trainer={"val_check_interval": count})
    options = ["--config", config, *STEADY, "--trainer.max_steps", count, "--checkpoint_every", 50]
    options += ["--optimizer.schedule", "constant", "--optimizer.average", 0.5]
    for kind in kinds:
        _compare(report, scratch / kind.replace(" ", "-"), [*options, *KINDS[kind]], kind)
    return report


def _compare(report: Report, root: Path, options: list[object], kind: str) -> None:
    root.mkdir()
    for number in (1, 2):
        place, log = root / f"on-{number}", root / f"{number}.log"
        training = train(*options, *devices(number), "--trainer.default_root_dir", place)
        codes = run(number, after([recorded(place / "seen")], training), log)
        if any(codes):
            report.case(f"{kind}: training", [f"exit codes {codes}, see {log}"])
            return
    one, two = root / "on-1" / "seen", root / "on-2" / "seen"
    for name, problems in {
        "first gradients": _gradients(one, two, report),
        "losses": _losses(one, two, report),
        "rows": _rows(one, two),
        "experts": _absent(two, report) if kind == "at once" else _rounds(two, report),
        "ranks agree to the bit": _same_weights(two),
        "metrics": _metrics(root / "on-1", root / "on-2"),
    }.items():
        report.case(f"{kind}: {name}", problems)


def _gradients(one: Path, two: Path, report: Report, limit: float = 1e-5) -> list[str]:
    expected = torch.load(one / "gradients-0.pt", weights_only=True)
    whole = float(torch.cat([gradient.flatten() for gradient in expected.values()]).norm())
    worst, problems = 0.0, []
    for number in (0, 1):
        found = torch.load(two / f"gradients-{number}.pt", weights_only=True)
        if set(found) != set(expected):
            problems.append(f"rank {number} has gradients of {set(found) ^ set(expected)}")
            continue
        for name, gradient in expected.items():
            # The bias of the keys drops out of a softmax: its gradient is rounding errors alone.
            scale = max(float(gradient.norm()), 1e-6 * whole)
            worst = max(worst, float((found[name] - gradient).norm()) / scale)
    _worst(report, "gradient", worst)
    return problems + ([] if worst < limit else [f"differ by {worst:.1e}"])


def _losses(one: Path, two: Path, report: Report, limit: float = 1e-4) -> list[str]:
    pairs = [
        (a["loss"], b["loss"])
        for number in (0, 1)
        for a, b in zip(steps(one, 0), steps(two, number), strict=True)
    ]
    worst = max(abs(a - b) / abs(a) for a, b in pairs)
    _worst(report, "loss", worst)
    return [] if worst < limit else [f"differ by {worst:.1e}"]


def _worst(report: Report, name: str, value: float) -> None:
    report.numbers[name] = max(report.numbers.get(name, 0.0), float(f"{value:.1e}"))


def _rows(one: Path, two: Path) -> list[str]:
    whole, parts = steps(one, 0), (steps(two, 0), steps(two, 1))
    return [
        f"step {line['step']}: other rows"
        for line, first, second in zip(whole, *parts, strict=True)
        if Counter(line["rows"]) != Counter(first["rows"] + second["rows"])
    ]


def _absent(two: Path, report: Report) -> list[str]:
    """The share of steps in which one rank has no row of a task, and in which an expert is idle."""
    parts = steps(two, 0), steps(two, 1)
    absent = [a["tasks"] != b["tasks"] for a, b in zip(*parts, strict=True)]
    idle = [json.loads(line) for line in (two / "idle-0").read_text().splitlines()]
    report.numbers["absent"] = round(sum(absent) / len(absent), 2)
    report.numbers["idle"] = round(sum(map(bool, idle)) / len(idle), 2)
    same = (two / "idle-0").read_text() == (two / "idle-1").read_text()
    problems = [] if same else ["the ranks moved different experts"]
    if report.numbers["absent"] < 0.3 or report.numbers["idle"] == 0:
        problems.append(f"too few to tell: {report.numbers}")
    return problems


def _rounds(two: Path, report: Report) -> list[str]:
    """Groups of a step; and whether the ranks have different numbers of them in some steps."""
    groups = [[line["groups"] for line in steps(two, number)] for number in (0, 1)]
    report.numbers["groups"] = min(map(min, groups))
    uneven = any(a != b for a, b in zip(*groups, strict=True))
    return [] if report.numbers["groups"] > 1 and uneven else [f"too few to tell: {groups}"]


def _same_weights(two: Path) -> list[str]:
    first, second = (torch.load(two / f"weights-{n}.pt", weights_only=True) for n in (0, 1))
    return [name for name in first if not torch.equal(first[name], second[name])]


def _metrics(one: Path, two: Path) -> list[str]:
    expected, found = (
        json.loads((run_folder(root) / "result.json").read_text())["metrics"] for root in (one, two)
    )
    return _unlike(expected, found, "")


def _unlike(one: Any, other: Any, place: str) -> list[str]:
    if isinstance(one, dict):
        return [p for k in one | other for p in _unlike(one.get(k), other.get(k), f"{place}/{k}")]
    return [] if one is not None and abs(one - other) < 1e-4 else [f"{place}: {one} and {other}"]
