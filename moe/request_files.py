"""Requests in a file that may be larger than memory, row by row: JSON lines, CSV, Parquet."""

from __future__ import annotations

import codecs
import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from moe.requests import Request
from moe.streams import COLUMNS, WINDOW, Parse, check_columns, table_request
from moe.types import InputError

LONGEST = 1 << 24  # bytes of a line, or of a CSV cell: a longer one is no request


@dataclass(frozen=True, kw_only=True)
class FileRow:
    """What one row of a file says.

    Attributes:
        line: The line it starts in, or its number in a Parquet file; both from 1.
        value: A text or request object, not yet checked.
        error: Why it could not be read; None where `value` holds.
    """

    line: int
    value: Any = None
    error: str | None = None

    def request(self, parse: Parse) -> Request:
        """What the row asks.

        Raises:
            InputError: The row could not be read, or it is no request.
        """
        if self.error is not None:
            raise InputError(self.error)
        try:
            return parse(self.value)
        except RecursionError as error:  # of the value that the message would have shown
            raise InputError("request: a field is nested too deeply") from error


def read_rows(path: Path) -> Iterator[FileRow]:
    """The rows of a `.jsonl`, `.csv` or `.parquet` file in their order; holds few at a time.

    Raises:
        InputError: The file cannot be opened, its suffix is another one, or a table has no column
            `text`. What is wrong with one row is said in that row.
    """
    try:
        yield from _known(path)[0](path)
    except OSError as error:
        raise InputError(
            f"--input {path}: cannot be read ({error.strerror or str(error).splitlines()[0]})"
        ) from error


def read_requests(source: str, parse: Parse) -> list[Request]:
    """All requests of a file, or of JSON lines on stdin if the source is `-`.

    Raises:
        InputError: See `read_rows`; also if one row is no request, or if there is none.
    """
    requests = []
    for row in _json_rows(sys.stdin.buffer) if source == "-" else read_rows(Path(source)):
        try:
            requests.append(row.request(parse))
        except InputError as error:
            raise InputError(f"{source}, line {row.line}: {error}") from error
    if not requests:
        raise InputError(f"--input {source}: no request in the file")
    return requests


def count_rows(path: Path) -> int:
    """About how many rows a file has: exact for Parquet, else its lines. For a progress bar.

    Raises:
        InputError: See `read_rows`.
    """
    try:
        return _known(path)[1](path)
    except OSError as error:
        raise InputError(f"--input {path}: cannot be read ({error.strerror or error})") from error


def _known(path: Path) -> tuple[Callable[[Path], Iterator[FileRow]], Callable[[Path], int]]:
    if path.suffix not in _FORMATS:
        raise InputError(
            f"--input {path}: a file {path.suffix!r} is not read, give one of {sorted(_FORMATS)}"
        )
    return _FORMATS[path.suffix]


def _read_json_lines(path: Path) -> Iterator[FileRow]:
    with path.open("rb") as file:
        yield from _json_rows(file)


def _json_rows(file: BinaryIO) -> Iterator[FileRow]:
    for line, raw in enumerate(_bounded_lines(file), start=1):
        if raw is None:
            yield FileRow(line=line, error=f"longer than {LONGEST} bytes")
        elif raw.strip():
            yield _json_row(line, raw)


def _bounded_lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Lines, None for one that is too long: a file without line ends would fill the memory."""
    while raw := file.readline(LONGEST):
        whole: bytes | None = raw
        while len(raw) == LONGEST and not raw.endswith(b"\n"):
            whole, raw = None, file.readline(LONGEST)
        yield whole


def _json_row(line: int, raw: bytes) -> FileRow:
    try:
        text = raw.removeprefix(codecs.BOM_UTF8 if line == 1 else b"").decode("utf-8")
        return FileRow(line=line, value=json.loads(text))
    except UnicodeDecodeError as error:
        return FileRow(line=line, error=f"not UTF-8 at byte {error.start}")
    except (ValueError, RecursionError) as error:
        return FileRow(line=line, error=f"not JSON ({error})")


def _read_csv(path: Path) -> Iterator[FileRow]:
    csv.field_size_limit(LONGEST)
    # Bytes that are no UTF-8 become lone surrogates, so that only their row is refused.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        try:
            header = next(reader, [])
        except csv.Error as error:
            raise InputError(f"--input {path}: no header line ({error})") from error
        check_columns(header, f"--input {path}")
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield FileRow(line=line, error=f"not CSV ({error})")
                continue
            if cells:
                yield _csv_row(line, header, cells)


def _csv_row(line: int, header: Sequence[str], cells: Sequence[str]) -> FileRow:
    if len(cells) != len(header):
        return FileRow(line=line, error=f"{len(cells)} cells, the header has {len(header)}")
    row: Mapping[str, Any] = dict(zip(header, (cell or None for cell in cells), strict=True))
    if any("\ud800" <= letter <= "\udfff" for cell in cells for letter in cell):
        return FileRow(line=line, error="not UTF-8")
    request = table_request(row)
    if request.get("tasks"):
        request["tasks"] = re.split(r"[\s,;]+", request["tasks"].strip())
    return FileRow(line=line, value=request)


def _read_parquet(path: Path) -> Iterator[FileRow]:
    with _parquet(path) as file:
        names = [name for name in file.schema_arrow.names if name in COLUMNS]
        check_columns(file.schema_arrow.names, f"--input {path}")
        # By row groups, so that memory holds one of them and not the file.
        batches = file.iter_batches(batch_size=WINDOW, columns=names)
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield FileRow(line=number, value=table_request(row))


def _parquet(path: Path) -> Any:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise InputError(f"--input {path}: not Parquet ({str(error).splitlines()[0]})") from error


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _count_parquet(path: Path) -> int:
    with _parquet(path) as file:
        return int(file.metadata.num_rows)


_FORMATS = {
    ".csv": (_read_csv, _count_lines),
    ".jsonl": (_read_json_lines, _count_lines),
    ".parquet": (_read_parquet, _count_parquet),
}
