"""New rows for a model that is already trained: read, cleaned, tokenized, with their hash."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moe.checkpoint import Bundle
from moe.config import TaskConfig
from moe.data.prepare import describe, read_task
from moe.data.sources import source_files
from moe.data.tables import TaskTable, build_table
from moe.types import InputError, TaskSpec


@dataclass(frozen=True, kw_only=True)
class NewRows:
    """Rows for one expert.

    Attributes:
        spec: The task.
        config: Where the rows come from, sources absolute.
        train, validation: Tokenized rows.
        origin: For the history: sources, SHA-256 of their files, numbers of rows.
        line: What was read and what cleaning dropped.
    """

    spec: TaskSpec
    config: TaskConfig
    train: TaskTable
    validation: TaskTable
    origin: dict[str, Any]
    line: str


def read_rows(
    bundle: Bundle, name: str, task: TaskConfig, *, root: str, spec: TaskSpec | None = None
) -> NewRows:
    """Reads the rows of a task.

    Args:
        bundle: The model that they are for.
        name: Of the task.
        task: Sources and columns.
        root: Folder of relative sources.
        spec: The task, if the model has it: the rows must have its labels. None for a new one.

    Raises:
        InputError: The rows are malformed, or of other labels.
    """
    if spec is not None and spec.labels:
        task = replace(task, labels=list(spec.labels), out_of_scope=spec.out_of_scope)
    read = read_task(name, task, root, bundle.config.seed_everything)
    names = [known.name for known in bundle.model.tasks]
    number = names.index(name) if name in names else len(names)
    cache = Path(bundle.config.data.cache)
    train, validation = (
        build_table(examples, spec or read.spec, number, bundle.tokenizer, cache)
        for examples in (read.train, read.validation)
    )
    config = replace(
        task,
        train=absolute_source(task.train, root),
        validation=task.validation and absolute_source(task.validation, root),
        labels=list(read.spec.labels) or None,
    )
    sources = [source for source in (task.train, task.validation) if source]
    return NewRows(
        spec=spec or read.spec,
        config=config,
        train=train,
        validation=validation,
        origin={
            "train": config.train,
            "validation": config.validation,
            "rows": len(train),
            "sha256": {source: source_digest(source, root) for source in sources},
        },
        line=describe(read),
    )


def absolute_source(source: str, root: str) -> str:
    """The source as it can be read from any folder."""
    if source.partition(":")[0] in ("hub", "sample"):
        return source
    return str((Path(root) / source).absolute())


def source_digest(source: str, root: str) -> str | None:
    """SHA-256 over the files of a source; None where it comes from the hub."""
    files = source_files(source, root=Path(root))
    if not files:
        return None
    content = hashlib.sha256()
    for file in files:
        content.update(file.read_bytes())
    return content.hexdigest()


def check_new_name(bundle: Bundle, name: str) -> None:
    """A task that is added has a name of its own.

    Raises:
        InputError: The model has such a task.
    """
    names = [task.name for task in bundle.model.tasks]
    if name in names:
        raise InputError(
            f"--task {name!r}: the model has this task already; name another, or add an expert "
            f"to it with --also-for {name}"
        )
