"""What `eval.py` does: rows of some sources through a checkpoint, numbers out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch

from moe.allocator import keep_freed_memory
from moe.checkpoint import Bundle, load_bundle
from moe.collect import Answers, collect, join
from moe.data.module import RequestDataset
from moe.data.prepare import read_split, read_task
from moe.data.tables import TaskTable, build_table
from moe.evaluation import evaluate
from moe.precision import pick_device
from moe.types import InputError


def _test_sources(tests: Sequence[str], bundle: Bundle) -> dict[str, str]:
    names = [task.name for task in bundle.model.tasks]
    sources = {}
    for test in tests:
        name, separator, source = test.partition("=")
        if not separator or not source:
            raise InputError(f"--test {test!r}: expected TASK=SOURCE")
        if name not in names:
            raise InputError(f"--test {test!r}: no task {name!r}; the model has {sorted(names)}")
        sources[name] = source
    return sources


def build_test_tables(bundle: Bundle, tests: Sequence[str], root: str | None) -> list[TaskTable]:
    """Tables of the given `TASK=SOURCE` rows, or of the checkpoint's own validation rows."""
    config = bundle.config
    data = config.data if root is None else replace(config.data, root=root)
    sources = _test_sources(tests, bundle)
    tables = []
    for number, spec in enumerate(bundle.model.tasks):
        task = config.tasks[spec.name]
        if sources and spec.name not in sources:
            continue
        if sources:
            examples = read_split(spec.name, task, sources[spec.name], data.root, "test")
        else:
            examples = read_task(spec.name, task, data.root, config.seed_everything).validation
        tokenizer, cache = bundle.tokenizer, Path(data.cache)
        tables.append(build_table(examples, spec, number, tokenizer, cache))
    return tables


def collect_table(bundle: Bundle, table: TaskTable, device: torch.device) -> Answers:
    """The model's answers for all rows of a table, in the precision of the training."""
    bf16 = bundle.precision.startswith("bf16")
    dataset = RequestDataset(table, bundle.tokenizer, bundle.config.data)
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        return join(
            [collect(bundle.model, table, dataset[i].to(device)) for i in range(len(dataset))]
        )


def measure(
    source: str | Path,
    *,
    tests: Sequence[str] = (),
    routing: Literal["learned", "oracle"] = "learned",
    root: str | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """The report of `eval.py --json`.

    Args:
        source: Checkpoint, folder or hub id.
        tests: `TASK=SOURCE`; empty measures the checkpoint's validation sources.
        routing: `oracle` sends every row to its own task.
        root: Folder of relative sources; None is the training's.
        device: None takes a GPU if there is one.
    """
    start = time.monotonic()
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    bundle = load_bundle(source)
    chosen = pick_device(device)
    bundle.model.to(chosen)
    tables = build_test_tables(bundle, tests, root)
    answers = [collect_table(bundle, table, chosen) for table in tables]
    numbers = evaluate(tables, answers, bundle.calibration, bundle.model.tasks, routing)
    return {
        "checkpoint": str(source),
        "routing": routing,
        "seconds": round(time.monotonic() - start, 2),
        **asdict(numbers),
    }


def report_table(report: dict[str, Any]) -> str:
    """The report as text: one line per task, then experts and gate."""
    lines = []
    for task, metrics in report["tasks"].items():
        values = "  ".join(
            f"{name} {value:.2f}"
            if name in ("exact_match", "f1", "precision", "recall")
            else f"{name} {value:.4g}"
            for name, value in metrics.items()
        )
        lines.append(f"{task:<12} {values}")
    loads = "  ".join(f"{name} {entry['load']:.3f}" for name, entry in report["experts"].items())
    gate = "  ".join(f"{name} {value:.4f}" for name, value in report["gate"].items())
    return "\n".join([*lines, f"{'load':<12} {loads}", f"{'gate':<12} {gate}"])


def write_json(report: dict[str, Any], path: str) -> None:
    """Writes the report; the file appears complete or not at all."""
    target = Path(path)
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, target)
    except OSError as error:
        raise InputError(f"--json {path}: cannot be written ({error.strerror})") from error
