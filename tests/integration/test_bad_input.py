"""A user's mistake: one message with field, value and remedy, exit code 2, no traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": "abc def",
                    "qas": [
                        {
                            "id": "1",
                            "question": "who?",
                            "answers": [{"text": "abc", "answer_start": 2}],
                        }
                    ],
                }
            ]
        }
    ]
}


Run = Callable[..., Any]


def refused(run: Run, *arguments: object) -> str:
    done = run(*arguments, code=2)
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model.gate.topk", "1"], ["--model.gate.topk"]),
        (["--model.gate.top_k", "0"], ["model.gate.top_k", "at least 1", "got 0"]),
        (["--tasks.mood.train", "no.csv"], ["mood", "no.csv"]),
        (["--tasks.mood.text", "body"], ["mood", "body", "text"]),
        (["--tasks.mood.train", "empty.csv"], ["mood", "empty.csv"]),
        (["--tasks.mood.validation", "unknown.csv"], ["mood", "'sad'", "labels"]),
        (["--tasks.mood.train", "numbers.csv", "--tasks.mood.labels", "[bad, good]"], ["'7'"]),
        (["--tasks.qa.train", "shifted.json"], ["qa", "answer", "abc"]),
        (["--model.encoder.name", "no/such-model"], ["no/such-model"]),
        (["--data.tasks", "[weather]"], ["weather", "mood"]),
        (["--trainer.precision", "16-mixed"], ["16-mixed", "bf16-mixed"]),
        (["--data.max_length", "100", "--data.stride", "10"], ["100", "64"]),
    ],
    ids=lambda value: str(value[:2]) if value and value[0].startswith("--") else None,
)
def test_training_refuses(project: Path, run: Run, arguments: list[str], parts: list[str]) -> None:
    (project / "empty.csv").write_text("text,label\n")
    (project / "unknown.csv").write_text("text,label\na bad day,sad\n")
    (project / "numbers.csv").write_text("text,label\na bad day,0\na good day,7\n")
    (project / "shifted.json").write_text(json.dumps(SQUAD))
    root = ("--trainer.default_root_dir", project / "refused")
    message = refused(run, "train.py", "--config", project / "tiny.yaml", *root, *arguments)
    for part in parts:
        assert part in message


def test_checkpoints_that_are_none(run: Run, tmp_path: Path) -> None:
    assert "no.ckpt" in refused(run, "eval.py", "--ckpt", "no.ckpt")
    torch.save({"mixture": {"format_version": 99}, "state_dict": {}}, tmp_path / "new.ckpt")
    assert "99" in refused(run, "eval.py", "--ckpt", tmp_path / "new.ckpt")
    whole = (tmp_path / "new.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refused(run, "eval.py", "--ckpt", tmp_path / "cut.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert "mixture" in refused(run, "eval.py", "--ckpt", tmp_path / "other.ckpt")


def test_resume_of_nothing(project: Path, run: Run) -> None:
    assert "config.yaml" in refused(run, "train.py", "--resume", project / "nowhere")
    message = refused(run, "train.py", "--resume", project, "--optimizer.encoder_lr", "1")
    assert "--optimizer.encoder_lr" in message


def test_the_exit_code_of_a_real_process(run_in_process: Run, tmp_path: Path) -> None:
    done = run_in_process("eval.py", "--ckpt", "no.ckpt", cwd=tmp_path, code=2)
    assert done.stderr.startswith("error: no checkpoint at no.ckpt")
