"""A tiny DistilBERT in a folder and a small data set, so that whole commands run in seconds."""

from __future__ import annotations

import io
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from moe.chaos.project import BAD, GOOD, MUSIC, TIME, write_encoder

ROOT = Path(__file__).parents[2]

# Sums in another order differ in the last bit.
THREADS = {k: v for k, v in os.environ.items() if k == "OMP_NUM_THREADS"}
WORDS = sorted({w for text in GOOD + BAD + TIME + MUSIC for w in text.split()})


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    stdout: str
    stderr: str


def run_here(*arguments: object, code: int = 0) -> Done:
    """A program of the repository in this process, which saves the seconds of its imports."""
    name = str(arguments[0])
    stdout, stderr = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, [name, *map(str, arguments[1:])]
    exit_code = 0
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr):
            runpy.run_path(str(ROOT / name), run_name="__main__")
    except SystemExit as error:
        exit_code = int(error.code or 0)
    finally:
        sys.argv = before
    assert exit_code == code, stdout.getvalue()[-2000:] + stderr.getvalue()[-4000:]
    return Done(exit_code, stdout.getvalue(), stderr.getvalue())


def run_apart(*arguments: object, cwd: Path, code: int = 0) -> Done:
    """The same in a process of its own, in another folder, with the hub off."""
    done = subprocess.run(
        [sys.executable, str(ROOT / str(arguments[0])), *map(str, arguments[1:])],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={"PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(cwd), **THREADS},
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-4000:]
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def run() -> Callable[..., Done]:
    """`run("train.py", ...)` in this process."""
    return run_here


@pytest.fixture(scope="session")
def run_in_process() -> Callable[..., Done]:
    """`run_in_process("eval.py", ..., cwd=...)` in a new one."""
    return run_apart


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `encoder/`, data files of three tasks, and `tiny.yaml`."""
    folder = tmp_path_factory.mktemp("project")
    write_encoder(folder / "encoder", _words())
    rows = ["text,label"]
    for k in range(6):
        rows += [f"{text} {k},good" for text in GOOD] + [f"{text} {k},bad" for text in BAD]
    (folder / "train.csv").write_text("\n".join(rows))
    (folder / "val.csv").write_text("text,label\ngood bus,good\nbad bus,bad\na great song,good\n")
    _intents(folder / "intent.json")
    (folder / "qa.train.json").write_text(json.dumps(_squad(12)))
    (folder / "qa.val.json").write_text(json.dumps(_squad(3, start=20)))
    (folder / "tiny.yaml").write_text(CONFIG.format(folder=folder))
    return folder


CONFIG = """
tasks:
  mood: {{type: classifier, train: train.csv, validation: val.csv, experts: 2}}
  qa: {{type: span, train: qa.train.json, validation: qa.val.json}}
  intent:
    {{type: classifier, train: intent.json, validation: intent.json, out_of_scope: oos, experts: 2}}
model: {{encoder: {{name: {folder}/encoder}}, gate: {{width: 16}}}}
data:
  {{root: {folder}, cache: {folder}/cache, batch_size: 24, max_length: 48, stride: 8,
    max_tokens: 512}}
optimizer: {{encoder_lr: 1.0e-3, expert_lr: 3.0e-3, gate_lr: 1.0e-2}}
checkpoint_every: 3
trainer:
  max_epochs: -1
  max_steps: 8
  val_check_interval: 4
  check_val_every_n_epoch: null
  log_every_n_steps: 2
  default_root_dir: {folder}/runs
"""


def _words() -> list[str]:
    pieces = [chr(c) for c in range(97, 123)] + [f"##{chr(c)}" for c in range(97, 123)]
    digits = [str(d) for d in range(10)] + [f"##{d}" for d in range(10)]
    extra = ["the", "was", "built", "in", "by", "who", "mill", ".", "?", ","]
    return [*pieces, *digits, *extra, *WORDS]


def _intents(path: Path) -> None:
    train = [[f"{t} {k}", "time"] for t in TIME for k in range(5)]
    train += [[f"{t} {k}", "music"] for t in MUSIC for k in range(5)]
    content = {
        "train": train,
        "val": [["the time now", "time"], ["a song now", "music"]],
        "oos_train": [[f"bus food {k}", "oos"] for k in range(6)],
        "oos_val": [["food day", "oos"], ["the bus", "oos"]],
    }
    path.write_text(json.dumps(content))


def _squad(count: int, start: int = 0) -> dict[str, object]:
    paragraphs = []
    for k in range(start, start + count):
        name = chr(97 + k % 26) * 3
        context = f"the mill was built in 17{k:02d} by {name}, it was good."
        answer = {"text": name, "answer_start": context.index(f"by {name}") + 3}
        questions = [
            {"id": f"a{k}", "question": "who built the mill?", "answers": [answer]},
            {"id": f"b{k}", "question": "who hate it?", "answers": [], "is_impossible": True},
        ]
        paragraphs.append({"context": context, "qas": questions})
    return {"version": "v2.0", "data": [{"title": "mills", "paragraphs": paragraphs}]}
