"""Part files: cut to whole windows, shared among devices, joined in order."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe.batch_files import FileWindows, Job, count_lines, join, json_line, prepare
from moe.requests import Request, parse_request
from moe.streams import WINDOW
from moe.types import InputError, TaskSpec

TASKS = (TaskSpec(name="mood", type="classifier", num_experts=1, labels=("a", "b")),)


def parse(value: Any) -> Request:
    return parse_request(value, TASKS)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """1100 rows, every hundredth of them bad: three windows with the last one short."""
    rows = [json.dumps(f"text {k}" if k % 100 != 5 else "") for k in range(1111)]
    (tmp_path / "in.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "model.ckpt").write_bytes(b"weights")
    return Job(
        ckpt=str(tmp_path / "model.ckpt"), input=tmp_path / "in.jsonl",
        output=tmp_path / "out.jsonl",
    )


def write(path: Path, first: int, last: int, tail: str = "") -> None:
    path.write_text("".join(f"{k}\n" for k in range(first, last)) + tail)


def test_each_device_has_its_windows_and_all_have_all(job: Job) -> None:
    whole = list(FileWindows(job, parse, device=0, done=0))
    assert [len(window.requests) for window in whole] == [WINDOW, WINDOW, 1111 - 12 - 2 * WINDOW]
    assert whole[-1].rows == 1111
    two = replace(job, devices=2)
    shared = [[w.requests for w in FileWindows(two, parse, device=d, done=0)] for d in (0, 1)]
    assert shared[0] == [whole[0].requests, whole[2].requests]
    assert shared[1] == [whole[1].requests]
    later = list(FileWindows(two, parse, device=0, done=1))
    assert [window.requests for window in later] == [whole[2].requests]


def test_bad_rows_are_listed_once_with_line_and_reason(job: Job) -> None:
    two = replace(job, devices=2)
    for device in (0, 1):
        list(FileWindows(two, parse, device=device, done=1))
    errors = [json.loads(line) for line in job.errors.read_text().splitlines()]
    assert [error["line"] for error in errors] == [k + 1 for k in range(5, 1111, 100)]
    assert errors[0]["reason"] == "request: text is empty, got ''"


@pytest.mark.parametrize(("lines", "tail", "kept"), [
    (0, "", 0), (WINDOW - 1, "", 0), (WINDOW, "", 1), (WINDOW, "torn", 1),
    (2 * WINDOW + 5, "torn", 2), (WINDOW - 1, "torn", 0),
])
def test_a_part_is_cut_after_its_last_whole_window(
    job: Job, lines: int, tail: str, kept: int
) -> None:
    assert prepare(job) == [0]
    write(job.parts[0], 0, lines, tail)
    job.errors.write_text("of the run before\n")
    assert prepare(replace(job, resume=True)) == [kept]
    assert job.parts[0].read_text() == "".join(f"{k}\n" for k in range(kept * WINDOW))
    assert not job.errors.exists()  # it is written anew


@pytest.mark.parametrize("lines", [0, 1, WINDOW, WINDOW + 1, 2 * WINDOW, 5 * WINDOW + 7])
def test_parts_are_joined_in_order(job: Job, lines: int) -> None:
    for devices in (1, 2, 3):
        shared = replace(job, devices=devices)
        prepare(shared)
        for device, part in enumerate(shared.parts):
            part.write_text("".join(
                f"{k}\n" for k in range(lines) if k // WINDOW % devices == device
            ))
        assert join(shared) == lines
        assert job.output.read_text() == "".join(f"{k}\n" for k in range(lines))
        left = {path.name for path in job.output.parent.iterdir()}
        assert left == {"in.jsonl", "model.ckpt", "out.jsonl"}


def test_a_stopped_run_is_not_overwritten(job: Job) -> None:
    prepare(job)
    with pytest.raises(InputError, match=r"out.jsonl.partial.json is left .* --resume, or delete"):
        prepare(job)


@pytest.mark.parametrize(("change", "name"), [
    ({"tasks": ("mood",)}, "--tasks"), ({"explain": True}, "--explain"),
    ({"devices": 2}, "--devices"),
])
def test_another_run_is_not_gone_on_with(job: Job, change: dict[str, Any], name: str) -> None:
    prepare(job)
    with pytest.raises(InputError, match=f"--resume: {name} was"):
        prepare(replace(job, resume=True, **change))


@pytest.mark.parametrize("name", ["in.jsonl", "model.ckpt"])
def test_a_changed_file_is_another_run(job: Job, name: str) -> None:
    prepare(job)
    (job.output.parent / name).write_text("changed")
    with pytest.raises(InputError, match=r"--resume: --(input|ckpt) was"):
        prepare(replace(job, resume=True))


def test_files_must_differ_and_be_writable(job: Job, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be three files"):
        prepare(replace(job, output=job.input))
    with pytest.raises(InputError, match="must be three files"):
        prepare(replace(job, error_file=job.output))
    with pytest.raises(InputError, match="cannot be written"):
        prepare(replace(job, output=tmp_path / "no" / "out.jsonl"))


def test_a_line_is_valid_json_whatever_the_id(tmp_path: Path) -> None:
    raw = json_line({"id": "\ud800 ä \n"})
    assert raw.count(b"\n") == 1 and "ä".encode() in raw
    assert json.loads(raw.decode("utf-8"))["id"] == "\ud800 ä \n"
    assert count_lines(tmp_path / "none") == 0
