"""Tables and JSON out of files, by their suffix; what the rows mean is said elsewhere."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet

from moe.data.formats import Place, Table
from moe.data.text import shorten
from moe.types import InputError

Rows = list[tuple[Place, Mapping[str, Any]]]


def read_text(path: Path) -> str:
    """The content of a UTF-8 file, with or without a byte order mark."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        wrong = data[error.start : error.start + 8]
        raise InputError(f"{path}, line {line}: got the bytes {wrong!r}, expected UTF-8") from error


def parse_json(text: str, place: str) -> Any:
    """What a JSON text says; `place` is for the error."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: got {shorten(text)}, expected JSON ({error})") from error


def _split_lines(text: str) -> list[tuple[int, str]]:
    """Lines with their numbers, from 1, without blank ones. str.splitlines would also split at
    characters such as U+2028, which belong to a field."""
    lines = enumerate((line.removesuffix("\r") for line in text.split("\n")), start=1)
    return [(number, line) for number, line in lines if line.strip("\r ")]


def _delimited(path: Path, lines: Iterator[tuple[int, list[str]]]) -> Table:
    """A table of a header and rows of fields, each with the number of its first line."""
    _, columns = next(lines, (0, []))
    rows: Rows = []
    if len(set(columns)) < len(columns):
        raise InputError(f"{path}, line 1: got the columns {columns}, expected distinct names")
    for number, fields in lines:
        if len(fields) != len(columns):
            raise InputError(
                f"{path}, line {number}: got {len(fields)} fields in "
                f"{shorten(fields)}, expected {len(columns)}: {columns}"
            )
        rows.append((Place(str(path), f"line {number}"), dict(zip(columns, fields, strict=True))))
    return Table(file=str(path), columns=columns, rows=rows)


def _read_tsv(path: Path) -> Table:
    lines = _split_lines(read_text(path))
    return _delimited(path, ((number, line.split("\t")) for number, line in lines))


def _read_csv(path: Path) -> Table:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is shorter than some passages
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)

    def numbered() -> Iterator[tuple[int, list[str]]]:
        start = 1
        try:
            for fields in reader:
                if fields:
                    yield start, fields
                start = reader.line_num + 1
        except csv.Error as error:
            raise InputError(
                f"{path}, line {start}: expected CSV after RFC 4180 ({error})"
            ) from error

    return _delimited(path, numbered())


def read_json_lines_file(path: Path) -> Table:
    """The objects of a JSON-lines file."""
    rows: Rows = []
    for number, line in _split_lines(read_text(path)):
        row = parse_json(line, f"{path}, line {number}")
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: got {shorten(row)}, expected a JSON object")
        rows.append((Place(str(path), f"line {number}"), row))
    columns = list(dict.fromkeys(name for _, row in rows for name in row))
    return Table(file=str(path), columns=columns, rows=rows)


def _read_parquet(path: Path) -> Table:
    try:
        table = pyarrow.parquet.ParquetFile(path).read()
        rows = table.to_pylist()
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: expected Parquet ({error})") from error
    written_by_datasets = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    features = written_by_datasets.get("info", {}).get("features", {})
    return Table(
        file=str(path),
        columns=table.column_names,
        rows=numbered_rows(str(path), rows),
        class_names=class_names(features),
    )


def class_names(features: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    """The names behind columns of class numbers, or of lists of them.

    Args:
        features: By column its description by Hugging Face `datasets`.
    """
    described = {k: kind for k, kind in features.items() if isinstance(kind, dict)}
    inner = {column: kind.get("feature", kind) for column, kind in described.items()}
    return {k: kind["names"] for k, kind in inner.items() if kind.get("_type") == "ClassLabel"}


def _read_conll(path: Path) -> Table:
    """Rows with `tokens` and `tags`: the first and the last column, rows parted by blank lines."""
    rows: Rows = []
    row: dict[str, Any] | None = None
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        stripped = line.strip(" \t\r")
        fields = re.split("[ \t]+", stripped) if stripped else []
        if not fields or fields[0] == "-DOCSTART-":
            row = None
            continue
        if len(fields) < 2:
            raise InputError(
                f"{path}, line {number}: got {shorten(line)}, expected a word and a tag"
            )
        if row is None:
            row = {"tokens": [], "tags": []}
            rows.append((Place(str(path), f"line {number}"), row))
        row["tokens"].append(fields[0])
        row["tags"].append(fields[-1])
    return Table(file=str(path), columns=["tokens", "tags"] if rows else [], rows=rows)


TABLE_READERS = {
    ".conll": _read_conll,
    ".csv": _read_csv,
    ".jsonl": read_json_lines_file,
    ".parquet": _read_parquet,
    ".tsv": _read_tsv,
}


def numbered_rows(file: str, rows: list[dict[str, Any]]) -> Rows:
    """Rows with their numbers, from 1, as places."""
    return [(Place(file, f"row {number}"), row) for number, row in enumerate(rows, start=1)]
