"""`scripts/predict.py --output`: whole files, killed and resumed, shared, with bad rows."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe.checkpoint import Bundle, save_bundle
from moe.predict import MixtureOfExperts
from moe.streams import WINDOW

ROOT = Path(__file__).parents[2]
Run = Callable[..., Any]


@pytest.fixture
def model(word_bundle: Callable[..., Bundle], tmp_path: Path) -> Path:
    """A folder with an untrained mixture."""
    save_bundle(word_bundle(), tmp_path / "model")
    return tmp_path / "model"


def requests(count: int) -> list[dict[str, Any]]:
    """Texts of many lengths, some with a passage, some with named tasks."""
    made: list[dict[str, Any]] = []
    for k in range(count):
        request: dict[str, Any] = {"text": "good " * (k % 7) + "film", "id": str(k)}
        if k % 50 == 3:
            request |= {"text": "who led", "context": "an abbot led the monks " * (1 + k % 4)}
        if k % 50 == 7:
            request["tasks"] = ["sentiment", "intent"]
        made.append(request)
    return made


def write_lines(path: Path, values: list[Any]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def command(model: Path, source: Path, output: Path, *more: object) -> tuple[object, ...]:
    arguments = ("scripts/predict.py", "--ckpt", model, "--input", source, "--output", output)
    return (*arguments, "--device", "cpu", *more)


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_file_is_answered_like_a_list(model: Path, tmp_path: Path, run: Run) -> None:
    asked = requests(WINDOW + 60)
    source, output = write_lines(tmp_path / "in.jsonl", asked), tmp_path / "out.jsonl"
    done = run(*command(model, source, output))
    assert f"{len(asked)} rows: {len(asked)} answered, 0 bad" in done.stdout
    assert "rows/s" in done.stdout
    expected = MixtureOfExperts.from_pretrained(model, "cpu").predict(asked)
    assert answers(output) == json.loads(json.dumps(expected))
    assert [answer["id"] for answer in answers(output)] == [request["id"] for request in asked]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"model", "in.jsonl", "out.jsonl"}


def test_csv_and_parquet_are_answered_like_json_lines(
    model: Path, tmp_path: Path, run: Run
) -> None:
    asked = requests(60)
    columns = {k: [r.get(k) for r in asked] for k in ("id", "text", "context", "tasks")}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet", row_group_size=7)
    with (tmp_path / "in.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for r in asked:
            writer.writerow([r["id"], r["text"], r.get("context"), ",".join(r.get("tasks", []))])
    write_lines(tmp_path / "in.jsonl", asked)
    for kind in ("jsonl", "csv", "parquet"):
        run(*command(model, tmp_path / f"in.{kind}", tmp_path / f"{kind}.jsonl"))
    assert (tmp_path / "csv.jsonl").read_bytes() == (tmp_path / "jsonl.jsonl").read_bytes()
    assert (tmp_path / "parquet.jsonl").read_bytes() == (tmp_path / "jsonl.jsonl").read_bytes()


def test_bad_rows_are_put_aside(model: Path, tmp_path: Path, run: Run) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('"good"\nnot json\n{"text": 7}\n{"text": "bad", "txt": 1}\n\n"very good"\n')
    done = run(*command(model, source, output, "--error-file", tmp_path / "bad.jsonl"))
    assert "5 rows: 2 answered, 3 bad" in done.stdout
    assert len(answers(output)) == 2
    bad = answers(tmp_path / "bad.jsonl")
    assert [row["line"] for row in bad] == [2, 3, 4]
    assert "not JSON" in bad[0]["reason"]
    assert "text must be a string, got 7" in bad[1]["reason"]
    assert "unknown field 'txt'" in bad[2]["reason"]


def test_tasks_and_explain_reach_every_row(model: Path, tmp_path: Path, run: Run) -> None:
    source, output = write_lines(tmp_path / "in.jsonl", ["good", "bad"]), tmp_path / "out.jsonl"
    run(*command(model, source, output, "--tasks", "intent", "sentiment", "--explain"))
    for answer in answers(output):
        assert set(answer["answers"]) == {"intent", "sentiment"} and answer["explanation"]


def test_without_an_output_answers_are_printed(model: Path, tmp_path: Path, run: Run) -> None:
    asked = requests(9)
    columns = {k: [r.get(k) for r in asked] for k in ("id", "text", "context", "tasks")}
    pq.write_table(pa.table(columns), tmp_path / "in.parquet")
    arguments = ("scripts/predict.py", "--ckpt", model, "--device", "cpu", "--explain")
    done = run(*arguments, "--input", tmp_path / "in.parquet")
    expected = MixtureOfExperts.from_pretrained(model, "cpu").predict(asked, explain=True)
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert printed == json.loads(json.dumps(expected))
    done = run(*arguments, "--input", tmp_path / "in.parquet", "--resume", code=2)
    assert "--output" in done.stderr


@pytest.mark.parametrize(("more", "parts"), [
    (["--tasks", "weather"], ["no task 'weather'", "sentiment"]),
    (["--input", "-"], ["--output", "--input FILE"]),
    (["--input", "in.txt"], ["in.txt", ".parquet"]),
    (["--devices", "0"], ["--device"]),
    (["--device", "abacus"], ["--device abacus"]),
])
def test_a_mistake_ends_before_anything_is_written(
    model: Path, tmp_path: Path, run: Run, more: list[str], parts: list[str]
) -> None:
    source, output = write_lines(tmp_path / "in.jsonl", ["good"]), tmp_path / "out.jsonl"
    done = run(*command(model, source, output, *more), code=2)
    assert all(part in done.stderr for part in parts), done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"model", "in.jsonl"}


def lines_of(file: Path) -> int:
    """Whole lines; 0 where there is no file yet."""
    return file.read_bytes().count(b"\n") if file.exists() else 0


def test_killed_and_resumed_it_ends_with_the_same_file(
    model: Path, tmp_path: Path, run: Run
) -> None:
    asked: list[Any] = [*requests(4 * WINDOW + 77)]
    asked[100] = asked[-3] = {"text": ""}  # a bad row before the kill and one after
    source = write_lines(tmp_path / "in.jsonl", asked)
    whole, output = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run(*command(model, source, whole))
    part = tmp_path / "out.jsonl.partial"
    arguments = [str(value) for value in command(model, source, output)]
    program = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
    process = subprocess.Popen(program, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 240
        while lines_of(part) < 2 * WINDOW and process.poll() is None:
            assert time.monotonic() < deadline, "no window was answered"
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
    assert part.exists() and not output.exists()
    with part.open("ab") as file:
        file.write(b'{"abstained": fal')  # as if it was killed in the middle of a line
    refused = run(*command(model, source, output), code=2)
    assert "--resume" in refused.stderr
    done = run(*command(model, source, output, "--resume"))
    assert output.read_bytes() == whole.read_bytes()
    errors = [path.with_name(f"{path.name}.errors.jsonl") for path in (output, whole)]
    assert errors[0].read_bytes() == errors[1].read_bytes()
    computed = int(done.stdout.split("bad; ")[1].split(" in ")[0])
    assert computed <= len(asked) - 2 - WINDOW  # what was answered is not answered again
    assert not part.exists() and not (tmp_path / "out.jsonl.partial.json").exists()
    again = run(*command(model, source, output, "--resume"))
    assert f"{len(asked) - 2} answered, 2 bad; 0 in 0.0 s" in again.stdout


@pytest.mark.slow
def test_two_processes_share_the_work(
    model: Path, tmp_path: Path, run: Run, run_in_process: Run
) -> None:
    asked: list[Any] = requests(2 * WINDOW + 9)
    asked[5] = 7  # a bad row
    source = write_lines(tmp_path / "in.jsonl", asked)
    run(*command(model, source, tmp_path / "1.jsonl"))
    run_in_process(*command(model, source, tmp_path / "2.jsonl", "--devices", 2), cwd=tmp_path)
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()
    bad = (tmp_path / "2.jsonl.errors.jsonl").read_bytes()
    assert bad == (tmp_path / "1.jsonl.errors.jsonl").read_bytes()
    assert not list(tmp_path.glob("*.partial*"))
