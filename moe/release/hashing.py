"""One SHA-256 for a whole model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from moe.durable import digest

SINGLE = "model.ckpt"  # what a model that is one file is called, wherever it lies


def model_files(source: Path) -> dict[str, Path]:
    """The files of a model by their names inside it: a checkpoint, or a folder's files, sorted."""
    if source.is_file():
        return {SINGLE: source}
    files = sorted(path for path in source.rglob("*") if path.is_file())
    return {path.relative_to(source).as_posix(): path for path in files}


def combined_hash(hashes: Mapping[str, str]) -> str:
    """One SHA-256 for names and hashes of several files, whatever their order."""
    lines = "".join(f"{value}  {name}\n" for name, value in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def model_hash(source: Path) -> str:
    """One SHA-256 for a checkpoint or a folder; the same for a copy under another name."""
    return combined_hash({name: digest(path) for name, path in model_files(source).items()})
