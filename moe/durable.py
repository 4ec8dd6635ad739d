"""Files that a crash leaves whole: written beside the target, synced, moved, with a SHA-256.

`SHA256SUMS` in the folder has the form that `sha256sum -c` reads. It is written before the files
are moved, with the digest of the new one added, and again after: whenever a process dies, every
whole file of the folder has its digest there. So it is the digest that counts, under any name.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

SUMS = "SHA256SUMS"
Sums = dict[str, set[str]]  # digests in hexadecimal by file name
State = Literal["whole", "damaged", "unknown"]


class Writer(Protocol):
    """What `save` hands to its caller to write to."""

    def write(self, data: bytes, /) -> int:
        """As of a file."""

    def flush(self) -> None:
        """As of a file."""


class _Hashed:
    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes, /) -> int:
        try:
            written = self.file.write(data)
        except OSError as error:  # torch.save turns it into a RuntimeError without its reason
            self.error = error
            raise
        self.hash.update(data)
        return written

    def flush(self) -> None:
        self.file.flush()


def digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_sums(folder: Path) -> Sums:
    """Digests by name; empty without a readable `SHA256SUMS`."""
    try:
        text = (folder / SUMS).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    sums: Sums = {}
    for value, name in re.findall(r"^([0-9a-f]{64})  (.+)$", text, re.MULTILINE):
        sums.setdefault(name, set()).add(value)
    return sums


def check_digest(path: Path) -> State:
    """Whether the file's digest is in `SHA256SUMS`; unknown if that has neither it nor the name."""
    sums = read_sums(path.parent)
    if not sums:
        return "unknown"
    if digest(path) in set().union(*sums.values()):
        return "whole"
    return "damaged" if path.name in sums else "unknown"


def save(path: Path, write: Callable[[Writer], object], older: Sequence[Path] = ()) -> None:
    """Replaces a file by what `write` writes, or leaves it as it was.

    Args:
        path: The target; its folder is made.
        write: Writes the content.
        older: Where the files before go, newest first; the last of them is dropped.

    Raises:
        OSError: It cannot be written; nothing is left of it.
    """
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        added = _write(temporary, write)
        sums = read_sums(folder)
        _write_sums(folder, {**sums, path.name: sums.get(path.name, set()) | {added}})
        after = {**sums, path.name: {added}}
        chain = [path, *older]
        for newer, target in reversed(list(pairwise(chain))):
            if newer.exists():
                os.replace(newer, target)
                after[target.name] = sums.get(newer.name, set())
        os.replace(temporary, path)
        _sync(folder)
        _write_sums(folder, {name: s for name, s in after.items() if (folder / name).exists()})
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Removes what a killed process had not finished writing."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.parent / f".{path.name}.{os.getpid()}.tmp"


def _write(path: Path, write: Callable[[Writer], object]) -> str:
    with path.open("wb") as file:
        hashed = _Hashed(file)
        try:
            write(hashed)
        except RuntimeError as error:
            raise hashed.error or error from error
        file.flush()
        os.fsync(file.fileno())
    return hashed.hash.hexdigest()


def _write_sums(folder: Path, sums: Sums) -> None:
    lines = [f"{value}  {name}\n" for name in sorted(sums) for value in sorted(sums[name])]
    temporary = _temporary(folder / SUMS)
    try:
        _write(temporary, lambda file: file.write("".join(lines).encode()))
        os.replace(temporary, folder / SUMS)
        _sync(folder)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(folder: Path) -> None:
    """Makes renames in a folder last; Windows cannot open a folder, and needs it not."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
