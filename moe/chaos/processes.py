"""Two processes against one: the same gradients, losses, rows and metrics, and the same end.

The processes are those of a worker of torchrun: gloo on the CPU, one thread each.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moe.chaos.process import differences, fork, leftovers, run_folder, train, wait
from moe.chaos.project import make_project
from moe.chaos.report import Report
from moe.lit import LitMixture
from moe.ranks import rank

STOP_SECONDS = 10.0
Work = Callable[[], Any]
# One question a step, so that one of two ranks has no row for its expert; the better expert of each
# other task alone, so that some steps leave an expert idle on all ranks.
SPARSE = {
    "batch_size": 6,
    "mixing": {"kind": "fixed", "shares": {"mood": 3, "qa": 1, "intent": 2}},
}
STEADY = [
    *("--model.encoder.dropout", 0, "--model.encoder.attention_dropout", 0),
    *("--model.expert.dropout", 0, "--model.gate.train_top_k", 1),
    *("--model.loss.bias_rate", 0.01, "--optimizer.gradient_clip", 0),
]


# --- processes --------------------------------------------------------------------------------


def start(count: int, work: Work, log: Path) -> list[int]:
    """Forks the workers of a training on `count` processes; returns their process ids."""
    if count == 1:
        return [fork(work, log)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "chaos",
    }
    return [
        fork(work, log, **both, RANK=str(number), LOCAL_RANK=str(number)) for number in range(count)
    ]


def run(count: int, work: Work, log: Path, seconds: float = 600.0) -> list[int]:
    """The exit codes of such a training."""
    return [wait(process, seconds) for process in start(count, work, log)]


def devices(count: int) -> list[object]:
    """What `train.py` must be told of `count` processes."""
    return ["--trainer.devices", count]


# --- what a training did ----------------------------------------------------------------------


def record(out: Path) -> None:
    """Writes what every process of this training does to files in `out`; for a forked child.

    `steps-RANK.jsonl`: of each step its number, loss, rows as strings of token ids, and tasks;
    `gradients-RANK.pt`: of the first step; `weights-RANK.pt`: at the end.
    """
    out.mkdir(parents=True, exist_ok=True)
    step, sound = LitMixture.training_step, LitMixture._is_sound
    seen: dict[str, Any] = {}

    def training_step(self: LitMixture, batch: Any, number: int) -> None:
        seen["rows"] = [
            " ".join(map(str, ids[mask].tolist()))
            for part in batch.micro_batches
            for ids, mask in zip(part.input_ids, part.attention_mask, strict=True)
        ]
        seen["tasks"] = sorted({t for part in batch.micro_batches for t in part.task_ids.tolist()})
        step(self, batch, number)

    def is_sound(self: LitMixture, total: Any, norm: Tensor) -> bool:
        line = {"step": self.trainer.global_step, "loss": float(total["loss"]), **seen}
        with (out / f"steps-{rank()}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        gradients = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        if self.trainer.global_step == 0:
            torch.save(gradients, out / f"gradients-{rank()}.pt")
        idle = [name for name in self.model.expert_names
                if not any(n.startswith(f"experts.{name}.") for n in gradients)]  # fmt: skip
        with (out / f"idle-{rank()}").open("a") as file:
            file.write(json.dumps(idle) + "\n")
        return sound(self, total, norm)

    def on_train_end(self: LitMixture) -> None:
        torch.save(self.model.state_dict(), out / f"weights-{rank()}.pt")

    LitMixture.training_step = training_step  # type: ignore[assignment, method-assign]
    LitMixture._is_sound = is_sound  # type: ignore[assignment, method-assign]
    LitMixture.on_train_end = on_train_end  # type: ignore[assignment, method-assign]


def recorded(out: Path) -> Work:
    """`record`, as something to run in a child before its training."""
    return partial(record, out)


def steps(out: Path, number: int) -> list[dict[str, Any]]:
    """Lines of `steps-RANK.jsonl`; of a step that was done again the last one counts."""
    lines = (out / f"steps-{number}.jsonl").read_text().splitlines()
    found = {line["step"]: line for line in map(json.loads, lines)}
    return [found[step] for step in sorted(found)]


def after(first: Sequence[Work], then: Work) -> Work:
    """One thing after the others."""

    def work() -> None:
        for one in first:
            one()
        then()

    return work


# --- parity -----------------------------------------------------------------------------------


def parity(scratch: Path, count: int = 50) -> Report:
    """Two processes and one, with the same rows in a step, without dropout, in float32."""
    report = Report(name="parity")
    config = make_project(scratch, data=SPARSE, trainer={"val_check_interval": count})
    options = ["--config", config, *STEADY, "--trainer.max_steps", count, "--checkpoint_every", 50]
    for number in (1, 2):
        root = scratch / f"on-{number}"
        training = train(*options, *devices(number), "--trainer.default_root_dir", root)
        codes = run(number, after([recorded(root / "seen")], training), scratch / f"{number}.log")
        if any(codes):
            report.case("training", [f"exit codes {codes}, see {scratch / f'{number}.log'}"])
            return report
    one, two = scratch / "on-1" / "seen", scratch / "on-2" / "seen"
    report.case("first gradients", _gradients(one, two, report))
    report.case("losses", _losses(one, two, report))
    report.case("rows", _rows(one, two))
    report.case("absent experts", _absent(two, report))
    report.case("ranks agree to the bit", _same_weights(two))
    report.case("metrics", _metrics(scratch / "on-1", scratch / "on-2"))
    return report


def _gradients(one: Path, two: Path, report: Report, limit: float = 1e-5) -> list[str]:
    expected = torch.load(one / "gradients-0.pt", weights_only=True)
    worst, problems = 0.0, []
    for number in (0, 1):
        found = torch.load(two / f"gradients-{number}.pt", weights_only=True)
        if set(found) != set(expected):
            problems.append(f"rank {number} has gradients of {set(found) ^ set(expected)}")
            continue
        for name, gradient in expected.items():
            # A bias before a softmax has a gradient of rounding errors alone.
            scale = max(float(gradient.norm()), 1e-6)
            worst = max(worst, float((found[name] - gradient).norm()) / scale)
    report.numbers["gradient"] = float(f"{worst:.1e}")
    return problems + ([] if worst < limit else [f"differ by {worst:.1e}"])


def _losses(one: Path, two: Path, report: Report, limit: float = 1e-4) -> list[str]:
    pairs = [
        (a["loss"], b["loss"])
        for number in (0, 1)
        for a, b in zip(steps(one, 0), steps(two, number), strict=True)
    ]
    worst = max(abs(a - b) / abs(a) for a, b in pairs)
    report.numbers["loss"] = float(f"{worst:.1e}")
    return [] if worst < limit else [f"differ by {worst:.1e}"]


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


# --- an end, and going on ---------------------------------------------------------------------


def kill_at(step: int, number: int, sent: signal.Signals) -> Work:
    """Sends the rank `number` a signal when it begins a step; to be run in a child before."""

    def patch() -> None:
        run_step = LitMixture.training_step

        def training_step(self: LitMixture, *arguments: Any) -> None:
            if self.trainer.global_step == step and rank() == number:
                os.kill(os.getpid(), sent)
            run_step(self, *arguments)

        LitMixture.training_step = training_step  # type: ignore[assignment, method-assign]

    return patch


def other_counts(scratch: Path) -> Report:
    """Two processes, one is killed; on with one, stopped; on with two: each row as if unbroken."""
    report = Report(name="ranks")
    config = make_project(scratch, data=SPARSE, checkpoint_every=1)
    options = ["--config", config, *STEADY, "--trainer.val_check_interval", 20]
    whole, root = scratch / "whole", scratch / "broken"
    place = "--trainer.default_root_dir"
    parts = [
        (1, [], train(*options, place, whole), whole, [0]),
        (2, [kill_at(5, 1, signal.SIGKILL)], train(*options, *devices(2), place, root), root, None),
        (1, [kill_at(9, 0, signal.SIGTERM)], _resume(root, 1), root, [143]),
        (2, [], _resume(root, 2), root, [0, 0]),
    ]
    for at, (count, patches, training, folder, expected) in enumerate(parts):
        seen = folder / f"seen-{at}"
        log = scratch / f"{at}.log"
        codes = run(count, after([recorded(seen), *patches], training), log)
        right = codes == expected if expected else codes[1] == -signal.SIGKILL and codes[0] != 0
        report.case(f"part {at}", [] if right else [f"exit codes {codes}, see {log}"])
    if report.failed:
        return report
    found: dict[int, tuple[list[str], float]] = {}
    for at, (count, *_) in enumerate(parts[1:], 1):
        every = [steps(root / f"seen-{at}", number) for number in range(count)]
        for lines in zip(*every, strict=False):  # a killed rank did not write its last step
            rows = [row for line in lines for row in line["rows"]]
            found[lines[0]["step"]] = rows, lines[0]["loss"]
    for line in steps(whole / "seen-0", 0):
        rows, loss = found.get(line["step"], ([], 0.0))
        problems = [] if Counter(rows) == Counter(line["rows"]) else ["other rows"]
        problems += [] if abs(loss - line["loss"]) < 1e-4 * abs(loss) else [f"loss {loss}"]
        report.case(f"step {line['step']}", problems)
    return report


def _resume(root: Path, count: int) -> Work:
    return train("--resume", run_folder(root), *devices(count))


def stops_of_one(scratch: Path, stops: int = 10) -> Report:
    """SIGTERM to one of two: both save and end with 143 in ten seconds, and the resume is exact."""
    report, chance = Report(name="sigterm-ranks"), random.Random(3)
    config = make_project(scratch, checkpoint_every=3)
    options = ["--config", config, *devices(2), "--trainer.default_root_dir"]
    begun = time.monotonic()
    codes = run(2, train(*options, scratch / "whole"), scratch / "whole.log")
    seconds = time.monotonic() - begun
    assert codes == [0, 0], f"the run ended with {codes}, see {scratch / 'whole.log'}"
    slowest = 0.0
    for number in range(stops):
        root = scratch / f"stop-{number}"
        log = root.with_suffix(".log")
        workers = start(2, train(*options, root), log)
        last = run_folder(root) / "checkpoints" / "last.ckpt"
        while not last.exists():  # from the first write on
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.3) * seconds)
        begun = time.monotonic()
        os.kill(workers[number % 2], signal.SIGTERM)
        codes = [wait(worker, STOP_SECONDS) for worker in workers]
        slowest = max(slowest, time.monotonic() - begun)
        problems = [] if codes == [143, 143] else [f"exit codes {codes}, see {log}"]
        codes = run(2, train("--resume", run_folder(root)), log)
        problems += [f"resumed with exit codes {codes}"] if any(codes) else []
        problems += differences(run_folder(scratch / "whole"), run_folder(root))
        report.case(root.name, problems + leftovers(run_folder(root)))
        shutil.rmtree(root, ignore_errors=True)
    report.numbers["slowest_seconds"] = round(slowest, 2)
    return report
