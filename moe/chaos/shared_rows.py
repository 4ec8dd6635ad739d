"""Rows of a validation that two processes share: each is counted once, whatever their number."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from moe.chaos.process import fork, run_folder, train, wait
from moe.chaos.processes import run
from moe.chaos.project import make_project
from moe.chaos.report import Report
from moe.checkpoint import Bundle, load_bundle
from moe.collect import Answers, collect, join
from moe.data.module import RequestDataset
from moe.data.tables import TaskTable
from moe.evaluation import evaluate
from moe.measure import build_test_tables
from moe.ranks import gathered, num_ranks, rank

SOURCES = {"mood": "train.csv", "qa": "qa.train.json", "intent": "intent.json#train+oos_train"}


def evaluation_sizes(scratch: Path, largest: int = 17) -> Report:
    """Two processes evaluate 1 to `largest` rows of each task: the rows and metrics of one."""
    report = Report(name="evaluation")
    config = make_project(scratch, trainer={"max_steps": 7})
    code = wait(fork(train("--config", config), scratch / "log"))
    assert code == 0, f"the training ended with {code}, see {scratch / 'log'}"
    checkpoint = run_folder(scratch / "runs") / "checkpoints" / "best.ckpt"
    codes = run(2, partial(_evaluate, checkpoint, scratch, largest), scratch / "log")
    assert codes == [0, 0], f"the evaluation ended with {codes}, see {scratch / 'log'}"
    for name, problems in json.loads((scratch / "found.json").read_text()).items():
        report.case(name, problems)
    return report


def _evaluate(checkpoint: Path, scratch: Path, largest: int) -> None:
    dist.init_process_group("gloo")
    bundle = load_bundle(checkpoint)
    tests = [f"{task}={source}" for task, source in SOURCES.items()]
    found: dict[str, list[str]] = {}
    for whole in build_test_tables(bundle, tests, str(scratch)):
        for size in range(1, largest + 1):
            table = replace(whole, rows=whole.rows.select(range(size)))
            parts = gathered(_collected(bundle, table, rank(), num_ranks()))
            if rank() == 0:
                shared = join([part for parts_of_rank in parts for part in parts_of_rank])
                alone = join(_collected(bundle, table, 0, 1))
                found[f"{size} of {table.spec.name}"] = _problems(bundle, table, shared, alone)
    if rank() == 0:
        (scratch / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _collected(bundle: Bundle, table: TaskTable, rank: int, num_ranks: int) -> list[Answers]:
    rows = RequestDataset(table, bundle.tokenizer, bundle.config.data, rank, num_ranks)
    with torch.no_grad():
        return [collect(bundle.model, table, rows[index]) for index in range(len(rows))]


def _problems(bundle: Bundle, table: TaskTable, shared: Answers, alone: Answers) -> list[str]:
    if shared.row_N.tolist() != list(range(len(table))):
        return [f"rows {shared.row_N.tolist()}"]
    expected, found = (
        evaluate([table], [said], bundle.calibration, bundle.model.tasks).tasks[table.spec.name]
        for said in (alone, shared)
    )
    return [
        f"{name}: {value} and {found[name]}"
        for name, value in expected.items()
        if value == value and abs(value - found[name]) > 1e-6
    ]
