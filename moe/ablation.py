"""Short trainings that differ from a config in one thing, to decide its defaults.

Every variant is trained with every seed on the same number of optimizer steps, and stands beside
the config as it is. Differences within the spread over the seeds decide nothing.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe.comparison import Side, run_side, steps_alone
from moe.evaluation import main_metric
from moe.runs import read_result
from moe.types import InputError

_UNIFORM = ("--data.mixing.shares", "null", "--data.mixing.kind")
_NO_SWITCH = ("--model.loss.switch", "0")
_NO_PRIOR = ("--model.loss.prior", "0")
_NO_BIAS = ("--model.loss.bias_rate", "0")
_TOP_2 = ("--model.gate.top_k", "2")

# What each variant changes; {task} stands for every task of the config.
VARIANTS: Mapping[str, tuple[str, ...]] = {
    "as configured": (),
    "balance none": (*_NO_SWITCH, *_NO_PRIOR, *_NO_BIAS),
    "balance switch": (*_NO_PRIOR, *_NO_BIAS),
    "balance prior": (*_NO_SWITCH, *_NO_BIAS),
    "balance bias": (*_NO_SWITCH, *_NO_PRIOR, "--model.loss.bias_rate", "0.02"),
    "balance switch and prior": _NO_BIAS,
    "1 expert": ("--tasks.{task}.experts", "1"),
    "2 experts": ("--tasks.{task}.experts", "2"),
    "4 experts": ("--tasks.{task}.experts", "4"),
    "2 experts, top 2": ("--tasks.{task}.experts", "2", *_TOP_2),
    "4 experts, top 2": ("--tasks.{task}.experts", "4", *_TOP_2),
    "4 experts, mix 90/9/1": (
        *("--tasks.{task}.experts", "4"),
        *("--data.mixing.kind", "fixed", "--data.mixing.shares", "{skewed}"),
    ),
    "trunk none": ("--model.expert.trunk", "none"),
    "trunk ffn": ("--model.expert.trunk", "ffn"),
    "trunk from the encoder": ("--model.expert.start", "encoder"),
    "last layer in the experts": ("--model.expert.start", "encoder", "--model.encoder.layers", "5"),
    "mix proportional": (*_UNIFORM, "proportional"),
    "mix uniform": (*_UNIFORM, "uniform"),
    "mix temperature": (*_UNIFORM, "temperature"),
    "gate reads first token": ("--model.pooling", "first"),
    "gate reads one mean": ("--model.pooling", "mean"),
    "gate reads the text alone": ("--model.pooling", "text"),
    "gate without a hidden layer": ("--model.gate.hidden", "0"),
    "classifier reads mean": ("--model.expert.pooling", "mean"),
    "encoder without dropout": ("--model.encoder.dropout", "0"),
    "encoder rate x 0.5": ("--optimizer.encoder_lr", "{encoder_lr} * 0.5"),
    "encoder rate x 2": ("--optimizer.encoder_lr", "{encoder_lr} * 2"),
    "expert rate x 0.5": ("--optimizer.expert_lr", "{expert_lr} * 0.5"),
    "expert rate x 2": ("--optimizer.expert_lr", "{expert_lr} * 2"),
    "rates that fall": ("--optimizer.schedule", "linear", "--optimizer.average", "0"),
    "routing x 0.3": ("--model.loss.routing", "{routing} * 0.3"),
    "routing x 3": ("--model.loss.routing", "{routing} * 3"),
    "no routing rows": ("--data.routing", "null"),
    "no noise": ("--data.noise", "0"),
    "no foreign passages": ("--data.attach_context", "0"),
}


def arguments_of(variant: str, tasks: Collection[str], numbers: Mapping[str, float]) -> list[str]:
    """Arguments of `train.py` for one variant.

    Args:
        variant: A key of `VARIANTS`.
        tasks: Names that {task} stands for, one pair of arguments each.
        numbers: By field, the config's own value, of which a factor is taken.
    """
    if variant not in VARIANTS:
        raise InputError(f"--only {variant!r}: no such variant, known: {sorted(VARIANTS)}")
    words = VARIANTS[variant]
    found: list[str] = []
    for name, value in zip(words[::2], words[1::2], strict=True):
        if value == "{skewed}":
            value = json.dumps({task: 100.0 / 10**n for n, task in enumerate(tasks)})
        elif value.startswith("{"):
            field, factor = value[1:].split("} * ")
            value = f"{numbers[field] * float(factor):g}"
        names = [name.format(task=task) for task in tasks] if "{task}" in name else [name]
        found += [word for n in names for word in (n, value)]
    return found


def run_variant(
    variant: str,
    arguments: Sequence[str],
    *,
    steps: int,
    seeds: Sequence[int],
    base: Sequence[str],
    folder: Path,
    train: Path,
) -> dict[str, Any]:
    """Trains one variant with every seed, or takes up what is finished; metrics by seed.

    Args:
        variant: Its name.
        arguments: What it changes.
        steps: Optimizer steps; validated at the end alone.
        seeds: One training each.
        base: `--config ...` and other arguments of all trainings.
        folder: Where runs and logs go.
        train: The `train.py` to call.
    """
    place = folder / variant.replace(" ", "-").replace(",", "")
    results = []
    for seed in seeds:
        words = (*arguments, *steps_alone(steps), "--seed_everything", str(seed))
        side = Side(name=f"seed{seed}", arguments=words)
        results.append(read_result(run_side(side, base, place, train)))
    return {
        "minutes": [result["minutes"] for result in results],
        "routing": [100 * result["metrics"]["gate"]["routing_accuracy"] for result in results],
        "balance": [result["metrics"]["gate"]["balance"] for result in results],
        "smallest load": [smallest_load(result["metrics"]["experts"]) for result in results],
        **_main_metrics(results),
    }


def _main_metrics(results: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    tasks = results[0]["metrics"]["tasks"]
    return {t: [100 * main_metric(r["metrics"]["tasks"][t])[1] for r in results] for t in tasks}


def smallest_load(experts: Mapping[str, Mapping[str, float]]) -> float:
    """Load of the idlest expert as a share of the fair load inside its task, in [0, 1].

    Args:
        experts: By name `TASK-NUMBER` its `load`.
    """
    tasks: dict[str, list[float]] = {}
    for name, entry in experts.items():
        tasks.setdefault(name.rpartition("-")[0], []).append(entry["load"])
    return min(min(loads) * len(loads) / max(sum(loads), 1e-9) for loads in tasks.values())


def ablation_text(report: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """One line per variant: mean over the seeds, and half the distance of the extremes."""
    columns = [*next(iter(report.values()))]
    lines = [f"{'variant':<26}" + "".join(f"{name:>16}" for name in columns)]
    for variant, values in report.items():
        cells = "".join(
            f"{np.mean(values[c]):>9.2f} ±{(max(values[c]) - min(values[c])) / 2:>5.2f}"
            for c in columns
        )
        lines.append(f"{variant:<26}{cells}")
    return "\n".join(lines)
