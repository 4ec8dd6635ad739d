"""Rows of files: what is in them, which line, and what is wrong with one."""

from __future__ import annotations

import csv
import json
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moe import request_files
from moe.request_files import FileRow, count_rows, read_requests, read_rows
from moe.requests import Request, parse_request
from moe.types import InputError, TaskSpec


def rows(path: Path, content: str | bytes) -> list[FileRow]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_rows(path))


# --- JSON lines -------------------------------------------------------------------------------


def test_json_lines(tmp_path: Path) -> None:
    content = '\ufeff{"text": "a", "id": "1"}\n\n"b"\r\n{"text": "ä"}'
    said = rows(tmp_path / "x.jsonl", content)
    assert [(row.line, row.value) for row in said] == [
        (1, {"text": "a", "id": "1"}), (3, "b"), (4, {"text": "ä"})
    ]
    assert all(row.error is None for row in said)


@pytest.mark.parametrize(("raw", "reason"), [
    (b'{"text": "a"', "not JSON (Expecting"),
    (b'{"text": "\xff"}', "not UTF-8 at byte 10"),
    (b"[" * 100_000, "not JSON ("),
    (b"1" * 5000, "not JSON ("),  # more digits than Python reads
])
def test_a_bad_line_is_said_in_its_row_and_the_rest_goes_on(
    tmp_path: Path, raw: bytes, reason: str
) -> None:
    first, bad, last = rows(tmp_path / "x.jsonl", b'"a"\n' + raw + b'\n"c"\n')
    assert (first.value, last.value) == ("a", "c")
    assert bad.line == 2 and bad.value is None and reason in str(bad.error)


def test_a_line_without_end_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_files, "LONGEST", 16)
    said = rows(tmp_path / "x.jsonl", b'"' + b"a" * 13 + b'"\n"' + b"b" * 60 + b'"\n"c"\n')
    assert [row.line for row in said] == [1, 2, 3]
    assert said[0].value == "a" * 13  # 16 bytes with its end
    assert said[1].error == "longer than 16 bytes"
    assert said[2].value == "c"


# --- CSV --------------------------------------------------------------------------------------


def test_csv(tmp_path: Path) -> None:
    content = (
        "id,text,context,tasks,label\n"
        '7,"a, b",,,x\n'
        '8,"two\nlines",passage,"mood; qa",y\n'
        "\n"
        ",c,,intent,\n"
    )
    said = rows(tmp_path / "x.csv", content)
    nothing = {"context": None, "tasks": None}
    assert [row.value for row in said] == [
        {"id": "7", "text": "a, b", **nothing},
        {"id": "8", "text": "two\nlines", "context": "passage", "tasks": ["mood", "qa"]},
        {"id": None, "text": "c", "context": None, "tasks": ["intent"]},
    ]
    assert [row.line for row in said][:2] == [2, 3]


def test_bad_rows_of_a_csv(tmp_path: Path) -> None:
    said = rows(tmp_path / "x.csv", b"text,label\na,x\nb\nc\xff,y\nd,z,1\ne,\n")
    assert [(row.line, row.error) for row in said] == [
        (2, None), (3, "1 cells, the header has 2"), (4, "not UTF-8"),
        (5, "3 cells, the header has 2"), (6, None),
    ]


def test_a_cell_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = csv.field_size_limit()
    monkeypatch.setattr(request_files, "LONGEST", 50)
    try:
        said = rows(tmp_path / "x.csv", "text\na\n" + 60 * "b" + "\nc\n")
    finally:
        csv.field_size_limit(before)
    assert [(row.line, row.value) for row in said] == [
        (2, {"text": "a"}), (3, None), (4, {"text": "c"})
    ]
    assert "field larger than field limit (50)" in str(said[1].error)


# --- Parquet ----------------------------------------------------------------------------------


def test_parquet_is_read_by_row_groups(tmp_path: Path) -> None:
    table = pa.table({
        "text": [f"text {k}" for k in range(1300)],
        "id": list(range(1300)),
        "tasks": [["mood"]] + [None] * 1299,
        "label": [0] * 1300,
    })
    path = tmp_path / "x.parquet"
    pq.write_table(table, path, row_group_size=400)
    said = list(read_rows(path))
    assert said[0] == FileRow(line=1, value={"text": "text 0", "id": "0", "tasks": ["mood"]})
    assert [row.line for row in said] == list(range(1, 1301))
    assert said[-1].value["text"] == "text 1299"
    assert count_rows(path) == 1300


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "content", "parts"), [
    ("x.csv", b"sentence,label\na,b\n", ["no column 'text'", "['label', 'sentence']"]),
    ("x.csv", b"", ["no column 'text'"]),
    ("x.txt", b"a\n", ["'.txt'", "['.csv', '.jsonl', '.parquet']"]),
    ("x.parquet", b"PAR1 no", ["not Parquet"]),
])
def test_what_cannot_be_read(
    tmp_path: Path, name: str, content: bytes, parts: list[str]
) -> None:
    with pytest.raises(InputError) as error:
        rows(tmp_path / name, content)
    assert all(part in str(error.value) for part in [name, *parts])


@pytest.mark.parametrize("function", [lambda p: list(read_rows(p)), count_rows])
def test_a_file_that_is_not_there(tmp_path: Path, function: Any) -> None:
    for name in ("no.jsonl", "no.csv", "no.parquet"):
        with pytest.raises(InputError, match=f"{name}: cannot be read"):
            function(tmp_path / name)


def test_lines_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(f"text {k}") + "\n" for k in range(7)))
    assert count_rows(path) == 7


# --- all requests of a file -------------------------------------------------------------------


def parse(value: Any) -> Request:
    mood = TaskSpec(name="mood", type="classifier", num_experts=1, labels=("a", "b"))
    return parse_request(value, (mood,))


def test_requests_of_a_file_and_of_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [Request(text="a"), Request(text="b", id="1")]
    lines, table = tmp_path / "x.jsonl", tmp_path / "x.csv"
    lines.write_text('"a"\n\n{"text": "b", "id": "1"}\n')
    table.write_text("text,id\na,\nb,1\n")
    assert read_requests(str(lines), parse) == read_requests(str(table), parse) == expected
    monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(lines.read_bytes())))
    assert read_requests("-", parse) == expected


@pytest.mark.parametrize(("content", "parts"), [
    (b'"a"\n{"text": 7}\n', ["x.jsonl, line 2: request: text must be a string, got 7"]),
    (b'"a"\n\n{\n', ["x.jsonl, line 3: not JSON"]),
    (b'{"text":' + b"[" * 600 + b"]" * 600 + b"}", ["x.jsonl, line 1: request: "]),
    (b"\n", ["--input ", "no request in the file"]),
])
def test_one_bad_row_refuses_the_whole_file(
    tmp_path: Path, content: bytes, parts: list[str]
) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(InputError) as error:
        read_requests(str(tmp_path / "x.jsonl"), parse)
    assert all(part in str(error.value) for part in parts)
