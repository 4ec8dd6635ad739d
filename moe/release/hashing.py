"""SHA-256 of files, and one for a whole model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

SINGLE = "model.ckpt"  # what a model that is one file is called, wherever it lies


def file_hash(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_files(source: Path) -> dict[str, Path]:
    """The files of a model by their names inside it: a checkpoint, or a folder's files, sorted."""
    if source.is_file():
        return {SINGLE: source}
    files = sorted(path for path in source.rglob("*") if path.is_file())
    return {path.relative_to(source).as_posix(): path for path in files}


def combined_hash(hashes: Mapping[str, str]) -> str:
    """One SHA-256 for names and hashes of several files, whatever their order."""
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def model_hash(source: Path) -> str:
    """One SHA-256 for a checkpoint or a folder; the same for a copy under another name."""
    return combined_hash({name: file_hash(path) for name, path in model_files(source).items()})
