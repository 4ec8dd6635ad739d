"""SOURCE strings: a local file, a data set in the hub's layout, or a packaged sample.

`train.tsv`, `clinc.json#val+oos_val`, `hub:OWNER/NAME@CONFIG`, `hub:FOLDER`, `sample:NAME`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pyarrow.parquet

from moe.data import formats
from moe.data.formats import Answer, Columns, Example, Place, Table, shorten
from moe.types import ExpertType, InputError

__all__ = [
    "Answer",
    "Columns",
    "Example",
    "Split",
    "read_json_lines",
    "read_source",
    "source_files",
]

Split = Literal["train", "validation", "test"]
Rows = list[tuple[Place, Mapping[str, Any]]]
SAMPLE_FOLDER = Path(__file__).parent / "sample"
SAMPLES: Mapping[str, Mapping[str, str]] = {
    "intent": {"train": "intent.json", "validation": "intent.json"},
    "qa": {"train": "qa.train.json", "validation": "qa.validation.json"},
    "routing": {"train": "routing.train.jsonl", "test": "routing.test.jsonl"},
    "sentiment": {"train": "sentiment.train.csv", "validation": "sentiment.validation.csv"},
    "topic": {"train": "topic.train.csv", "validation": "topic.validation.csv"},
}
CLINC_KEYS: Mapping[Split, tuple[str, str]] = {
    "train": ("train", "oos_train"),
    "validation": ("val", "oos_val"),
    "test": ("test", "oos_test"),
}
SPLIT_NAMES: Mapping[Split, tuple[str, ...]] = {  # on the hub; the first that is there
    "train": ("train",),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test",),
}


def read_source(
    source: str, *, root: Path, split: Split, type: ExpertType, columns: Columns = Columns()
) -> list[Example]:
    """The rows of a source, in its order, at least one.

    Args:
        source: What to read.
        root: Folder of relative files.
        split: Which part: of a hub data set, a sample, or CLINC JSON without named keys; a file
            that holds one split is read whole.
        type: `classifier` for labelled texts, `span` for questions on a context.
        columns: Columns of a table; JSON formats do not need them.

    Raises:
        InputError: Whatever is wrong, with file, row, field, value and what was expected.
    """
    kind, _, name = source.partition(":")
    if kind == "hub":
        examples = _table_examples(_hub_table(name, root, split), type, columns)
    else:
        path, keys = _sample_file(name, split) if kind == "sample" else _local_file(source, root)
        examples = _file_examples(path, keys, split, type, columns)
    if not examples:
        raise InputError(f"{source}: no rows, expected at least one")
    return examples


def read_json_lines(source: str, *, root: Path, split: Split) -> Table:
    """The objects of a local JSON-lines file or sample, for rows that are of no single task."""
    kind, _, name = source.partition(":")
    path, keys = _sample_file(name, split) if kind == "sample" else _local_file(source, root)
    if keys is not None:
        raise InputError(f"{path}: got #{'+'.join(keys)}, but JSON lines have no keys")
    if path.suffix.lower() != ".jsonl":
        raise InputError(f"{path}: got the suffix {path.suffix!r}, expected '.jsonl'")
    return _read_jsonl(path)


def source_files(source: str, *, root: Path) -> list[Path]:
    """Sorted local files whose content a source depends on; [] where it comes from the hub."""
    kind, _, name = source.partition(":")
    if kind == "sample":
        return sorted({SAMPLE_FOLDER / file for file in _sample(name).values()})
    if kind == "hub":
        folder = Path(_hub_location(name, root)[0])
        files = folder.rglob("*") if folder.is_absolute() else ()
        return sorted(
            f
            for f in files
            if f.is_file() and not any(part.startswith(".") for part in f.relative_to(folder).parts)
        )
    return [_local_file(source, root)[0]]


def _sample(name: str) -> Mapping[str, str]:
    if name not in SAMPLES:
        raise InputError(f"sample:{name}: no such sample, the samples are {sorted(SAMPLES)}")
    return SAMPLES[name]


def _sample_file(name: str, split: Split) -> tuple[Path, None]:
    files = _sample(name)
    if split not in files:
        raise InputError(f"sample:{name} has no split {split!r}, the splits are {sorted(files)}")
    return SAMPLE_FOLDER / files[split], None


def _local_file(source: str, root: Path) -> tuple[Path, list[str] | None]:
    """The file and the keys named after `#`, None without."""
    name, mark, keys = source.rpartition("#")
    if not mark or (root / source).exists():
        name, mark = source, ""
    path = root / name
    if not path.exists():
        raise InputError(f"{path}: no such file; a relative source is looked for in {root}")
    if not path.is_file():
        raise InputError(
            f"{path} is a directory, expected a file; a folder in the layout of the "
            f"hub is written hub:{name}"
        )
    return path, keys.split("+") if mark else None


def _file_examples(
    path: Path, keys: list[str] | None, split: Split, type: ExpertType, columns: Columns
) -> list[Example]:
    suffix = path.suffix.lower()
    if suffix != ".json" and suffix not in _TABLE_READERS:
        raise InputError(
            f"{path}: unknown suffix {suffix!r}, expected one of "
            f"{sorted(['.json', *_TABLE_READERS])}"
        )
    if keys is not None and (suffix != ".json" or type == "span"):
        raise InputError(
            f"{path}: got #{'+'.join(keys)}, but only CLINC JSON of a classifier has keys"
        )
    if suffix != ".json":
        return _table_examples(_TABLE_READERS[suffix](path), type, columns)
    document = _parse_json(_read_text(path), str(path))
    if type == "span":
        return formats.squad_examples(document, str(path))
    natural = [key for key in CLINC_KEYS[split] if isinstance(document, dict) and key in document]
    return formats.clinc_examples(document, str(path), keys or natural or CLINC_KEYS[split])


def _table_examples(table: Table, type: ExpertType, columns: Columns) -> list[Example]:
    read = formats.span_examples if type == "span" else formats.classifier_examples
    return read(table, columns) if table.columns else []


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        wrong = data[error.start : error.start + 8]
        raise InputError(f"{path}, line {line}: got the bytes {wrong!r}, expected UTF-8") from error


def _parse_json(text: str, place: str) -> Any:
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
    lines = _split_lines(_read_text(path))
    return _delimited(path, ((number, line.split("\t")) for number, line in lines))


def _read_csv(path: Path) -> Table:
    csv.field_size_limit(2**31 - 1)  # the default of 128 KiB is shorter than some passages
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), strict=True)

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


def _read_jsonl(path: Path) -> Table:
    rows: Rows = []
    for number, line in _split_lines(_read_text(path)):
        row = _parse_json(line, f"{path}, line {number}")
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
        rows=_numbered(str(path), rows),
        class_names={k: v["names"] for k, v in features.items() if "names" in v},
    )


_TABLE_READERS = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".tsv": _read_tsv,
}


def _numbered(file: str, rows: list[dict[str, Any]]) -> Rows:
    return [(Place(file, f"row {number}"), row) for number, row in enumerate(rows, start=1)]


def _hub_location(name: str, root: Path) -> tuple[str, str | None]:
    """An absolute local folder or a name on the hub, and the config or None."""
    config = None
    if "@" in name and not (root / name).is_dir():
        name, _, config = name.rpartition("@")
    if not name:
        raise InputError("hub: got no name, expected hub:OWNER/NAME[@CONFIG] or hub:FOLDER")
    folder = root / name
    return (str(folder.resolve()) if folder.is_dir() else name), config


def _hub_table(name: str, root: Path, split: Split) -> Table:
    import datasets  # here: it takes a second, and local files do without

    location, config = _hub_location(name, root)
    try:
        splits = datasets.load_dataset(location, config)
    except Exception as error:  # of five libraries, from no network to an unknown config
        raise InputError(
            f"hub:{name} cannot be loaded ({str(error).partition(chr(10))[0]}): check the name, or "
            "download it elsewhere and give its folder as hub:FOLDER or a local file"
        ) from error
    found = [key for key in SPLIT_NAMES[split] if key in splits]
    if not found:
        raise InputError(f"hub:{name} has no split {split!r}, the splits are {sorted(splits)}")
    rows = splits[found[0]]
    return Table(
        file=f"hub:{name}",
        columns=rows.column_names,
        rows=_numbered(f"hub:{name}", rows.to_list()),
        class_names={
            k: v.names for k, v in rows.features.items() if isinstance(v, datasets.ClassLabel)
        },
    )
