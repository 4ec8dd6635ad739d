"""SOURCE strings: a local file, a data set in the hub's layout, or a packaged sample.

`train.tsv`, `clinc.json#val+oos_val`, `hub:OWNER/NAME@CONFIG`, `hub:FOLDER`, `sample:NAME`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from moe.data.files import (
    TABLE_READERS,
    class_names,
    numbered_rows,
    parse_json,
    read_json_lines_file,
    read_text,
)
from moe.data.formats import Answer, Columns, Example, Split, Table
from moe.forms import FORMS, Form
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

SAMPLE_FOLDER = Path(__file__).parent / "sample"
SAMPLES: Mapping[str, Mapping[str, str]] = {
    "intent": {"train": "intent.json", "validation": "intent.json"},
    "qa": {"train": "qa.train.json", "validation": "qa.validation.json"},
    "routing": {"train": "routing.train.jsonl", "test": "routing.test.jsonl"},
    "sentiment": {"train": "sentiment.train.csv", "validation": "sentiment.validation.csv"},
    "slots": {"train": "slots.train.jsonl", "validation": "slots.validation.jsonl"},
    "topic": {"train": "topic.train.csv", "validation": "topic.validation.csv"},
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
        type: `classifier` for labelled texts, `span` for questions on a context, `tagger` for
            labelled words.
        columns: Columns of a table; JSON formats do not need them.

    Raises:
        InputError: Whatever is wrong, with file, row, field, value and what was expected.
    """
    kind, _, name = source.partition(":")
    if kind == "hub":
        examples = _table_examples(_hub_table(name, root, split), FORMS[type], columns)
    else:
        path, keys = _sample_file(name, split) if kind == "sample" else _local_file(source, root)
        examples = _file_examples(path, keys, split, FORMS[type], columns)
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
    return read_json_lines_file(path)


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
    path: Path, keys: list[str] | None, split: Split, form: Form, columns: Columns
) -> list[Example]:
    suffix = path.suffix.lower()
    if suffix != ".json" and suffix not in TABLE_READERS:
        raise InputError(
            f"{path}: unknown suffix {suffix!r}, expected one of "
            f"{sorted(['.json', *TABLE_READERS])}"
        )
    if suffix == ".json":
        document = parse_json(read_text(path), str(path))
        return form.read_json(document, str(path), keys, split)
    if keys is not None:
        raise InputError(
            f"{path}: got #{'+'.join(keys)}, but only CLINC JSON of a classifier has keys"
        )
    return _table_examples(TABLE_READERS[suffix](path), form, columns)


def _table_examples(table: Table, form: Form, columns: Columns) -> list[Example]:
    return form.read_table(table, columns) if table.columns else []


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
        rows=numbered_rows(f"hub:{name}", rows.to_list()),
        class_names=class_names(rows.features.to_dict()),
    )
