"""One joint model against one model per task, trained by the same code on the same budget.

Every single-task model sees as many rows of its task as the joint run does, so that all of them
together cost about what the joint run costs; the minutes are reported. It is fine-tuned as usual,
with rates that fall to 0, also where the joint run averages its weights. Both sides are measured
on the same validation rows, and their difference has a paired-bootstrap interval.

Dimensions: N rows.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moe.bootstrap import paired_interval
from moe.checkpoint import Bundle, load_bundle
from moe.checkpoint_io import LAST
from moe.config import ExperimentConfig
from moe.data.mixing import task_shares
from moe.data.tables import TaskTable
from moe.decode import Floats
from moe.evaluation import measured_routing
from moe.forms import FORMS
from moe.measure import build_test_tables, collect_table
from moe.precision import pick_device
from moe.runs import finished_run, read_result
from moe.types import InputError


@dataclass(frozen=True, kw_only=True)
class Side:
    """One training of a comparison.

    Attributes:
        name: `joint`, or the task.
        arguments: Of `train.py`.
    """

    name: str
    arguments: tuple[str, ...]


def sides(
    config: ExperimentConfig,
    steps: int,
    *,
    fraction: float,
    seed: int,
    batch_size: int,
    encoder_lr: float,
) -> list[Side]:
    """The joint training and one per task, all with the same rows of each task.

    Args:
        config: Of the joint run.
        steps: Optimizer steps of its full budget.
        fraction: Of the budget, in (0, 1].
        seed: Of all trainings.
        batch_size: Rows of a step of the single-task models.
        encoder_lr: Their encoder's learning rate.
    """
    joint_steps = round(steps * fraction)
    names = list(config.selected_tasks)
    mixing = config.data.mixing
    if mixing.kind != "fixed":
        raise InputError(
            f"data.mixing.kind {mixing.kind!r}: a comparison needs the kind 'fixed', so that both "
            "sides see the same number of rows"
        )
    shares = task_shares([1] * len(names), mixing, np.zeros(1), names)[0]
    common = ["--seed_everything", str(seed), "--trainer.check_val_every_n_epoch", "null"]
    found = [Side(name="joint", arguments=(*common, *steps_alone(joint_steps)))]
    for name, share in zip(names, shares, strict=True):
        rows = share * config.data.batch_size * joint_steps
        own = ["--data.tasks", f"[{name}]", "--data.batch_size", str(batch_size)]
        own += ["--optimizer.encoder_lr", str(encoder_lr), f"--tasks.{name}.experts", "1"]
        own += [f"--tasks.{name}.weight", "1.0", *usual(max(round(rows / batch_size), 1))]
        found.append(Side(name=name, arguments=(*common, *own)))
    return found


def steps_alone(steps: int) -> list[str]:
    """Arguments of a training of `steps` optimizer steps that is validated at its end alone."""
    return ["--trainer.max_steps", str(steps), "--trainer.val_check_interval", str(steps)]


def usual(steps: int) -> list[str]:
    """The same as one usually fine-tunes: the rates fall to 0, and no weights are averaged."""
    return [*steps_alone(steps), "--optimizer.schedule", "linear", "--optimizer.average", "0"]


def run_side(side: Side, base: Sequence[str], folder: Path, train: Path) -> Path:
    """Trains one side, or takes up what an earlier call finished; returns its run folder.

    What is needed to go on with it is deleted: a series of trainings would fill a disk.

    Args:
        side: What to train.
        base: `--config ...` and other arguments of the joint run.
        folder: Where runs and logs go.
        train: The `train.py` to call.
    """
    root, log = folder / side.name, folder / f"{side.name}.log"
    found = finished_run(root)
    if found is None:
        root.mkdir(parents=True, exist_ok=True)
        place = ("--trainer.default_root_dir", str(root))
        command = [sys.executable, str(train), *base, *side.arguments, *place]
        with log.open("w", encoding="utf-8") as out:
            subprocess.run(command, stdout=out, stderr=subprocess.STDOUT)
        found = finished_run(root)
    if found is None:
        raise InputError(f"the training of {side.name} failed, see {log}")
    (found / "checkpoints" / LAST).unlink(missing_ok=True)
    return found


def row_scores(bundle: Bundle, table: TaskTable) -> dict[str, Floats]:
    """By metric the score (N,) of each validation row, 0-100, with learned routing.

    Which metrics there are, the form of the task says (`row_scores` in `moe/forms/`).
    """
    device = pick_device()
    bundle.model.to(device)
    said = collect_table(bundle, table, device)
    ok_N = measured_routing(said, bundle.calibration, "learned", bundle.model.tasks)[0]
    collected = said.of(table, bundle.model.expert_names)
    return FORMS[table.spec.type].row_scores(collected, bundle.calibration, ok_N)


def paired_bootstrap(
    joint_N: Floats, single_N: Floats, *, draws: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """Mean difference joint minus single over the same rows, and its 95 % interval.

    Efron's percentile interval: rows are drawn with replacement, the same ones for both sides.
    """
    found = paired_interval(joint_N, single_N, draws=draws, seed=seed)
    return {"difference": found.value, "low": found.low, "high": found.high}


def compare_scores(joint: Path, singles: dict[str, Path], root: str | None) -> dict[str, Any]:
    """By task and metric: both means, their difference and its interval, in points.

    Args:
        joint: Checkpoint of the joint model.
        singles: Checkpoint of each task's own model.
        root: Folder of relative sources; None is that of the trainings.
    """
    bundle = load_bundle(joint)
    report: dict[str, Any] = {}
    for table in build_test_tables(bundle, (), root):
        name = table.spec.name
        own = load_bundle(singles[name])
        own_table = build_test_tables(own, (), root)[0]
        ours, theirs = row_scores(bundle, table), row_scores(own, own_table)
        report[name] = {
            metric: {
                "joint": float(ours[metric].mean()),
                "single": float(theirs[metric].mean()),
                **paired_bootstrap(ours[metric], theirs[metric]),
            }
            for metric in ours
        }
    return report


def compare_seed(
    config: ExperimentConfig,
    steps: int,
    *,
    base: Sequence[str],
    folder: Path,
    train: Path,
    joint: Path | None = None,
    **budget: Any,
) -> dict[str, Any]:
    """Trains what is missing and compares: scores by task, their mean difference, minutes.

    Args:
        config: Of the joint run.
        steps: Optimizer steps of its full budget.
        base: Arguments of `train.py` that gave `config`.
        folder: Where the runs go.
        train: The `train.py` to call.
        joint: Folder of a finished joint run, taken instead of training one.
        budget: Passed on to `sides`.
    """
    runs = {
        side.name: joint
        if side.name == "joint" and joint is not None
        else run_side(side, base, folder, train)
        for side in sides(config, steps, **budget)
    }
    best = {name: run / "checkpoints" / "best.ckpt" for name, run in runs.items()}
    minutes = {name: read_result(run)["minutes"] for name, run in runs.items()}
    tasks = compare_scores(best.pop("joint"), best, config.data.root)
    main = [next(iter(metrics.values()))["difference"] for metrics in tasks.values()]
    return {"tasks": tasks, "mean": float(np.mean(main)), "minutes": minutes}


def comparison_text(report: dict[str, Any]) -> str:
    """One comparison as a table."""
    lines = [f"{'task':<12}{'metric':<20}{'joint':>8}{'single':>8}{'joint - single (95 %)':>28}"]
    for task, metrics in report["tasks"].items():
        for metric, v in metrics.items():
            interval = f"{v['difference']:+.2f} ({v['low']:+.2f} to {v['high']:+.2f})"
            lines.append(
                f"{task:<12}{metric:<20}{v['joint']:>8.2f}{v['single']:>8.2f}{interval:>28}"
            )
    minutes = report["minutes"]
    singles = sum(m for name, m in minutes.items() if name != "joint")
    lines.append(f"mean over tasks {report['mean']:+.2f} points")
    lines.append(f"minutes: joint {minutes['joint']:.1f}, single-task models {singles:.1f}")
    return "\n".join(lines)
