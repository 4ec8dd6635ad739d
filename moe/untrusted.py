"""Looks at files from elsewhere before anything reads them; the standard library alone.

A checkpoint may come from the internet. Nothing here runs, unpacks or allocates what a file asks
for: sizes are compared with the bytes that are there, and a pickle is read as a list of opcodes.
"""

from __future__ import annotations

import json
import pickletools
import stat
import struct
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from moe.types import InputError

MAX_FILE = 16 * 10**9  # bytes; a checkpoint of 500 M parameters with optimizer has 6e9
MAX_TEXT = 16 * 10**6  # bytes of a tokenizer, or of the pickle beside the weights
MAX_JSON = 4 * 10**6  # bytes; a list of lists takes 20 times its size in memory
MAX_OPCODES = 600_000  # of a pickle; 885 tensors have 30,000
MAX_DIRECTORY = 4 * 10**6  # bytes that list the content of a zip file
_FOOTER = struct.Struct("<4s4H2LH")  # end of central directory, PKWARE APPNOTE 4.3.16
_FOOTER64 = struct.Struct("<4sQ2H2L4Q")  # the same in zip64, 4.3.14
_LOCATOR64 = struct.Struct("<4sLQL")  # where that is, 4.3.15

# What torch.save writes for tensors, dictionaries, lists, strings and numbers.
_OPCODES = {
    "PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2",
    "LONG1", "BINFLOAT", "BINUNICODE", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_SET",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS",
    "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "REDUCE", "BUILD",
    "BINPERSID",
}  # fmt: skip
_STORAGES = ["Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"]
_GLOBALS = {
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    *(f"torch {kind}Storage" for kind in _STORAGES),
}


def check_file(path: Path, limit: int = MAX_FILE) -> None:
    """A regular file of at most `limit` bytes.

    Raises:
        InputError: It is missing, a folder, a device, or larger.
    """
    try:
        found = path.stat()
    except (OSError, ValueError, RuntimeError) as error:  # a circle of links, a name with a NUL
        raise InputError(f"{path}: cannot be read ({_reason(error)})") from error
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: not a file: expected a checkpoint")
    if found.st_size > limit:
        raise InputError(f"{path}: {found.st_size} bytes, more than the {limit} that are read")


def check_inside(path: Path, folder: Path) -> None:
    """A file of a model folder lies in it, or where the hub's cache keeps the files of a snapshot.

    Raises:
        InputError: It is a link to elsewhere.
    """
    if not path.is_symlink():
        return
    home = folder.resolve()
    places = [home]
    if home.parent.name == "snapshots":
        places.append(home.parent.parent / "blobs")
    try:
        target = path.resolve()
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be read ({_reason(error)})") from error
    if not any(target.is_relative_to(place) for place in places):
        raise InputError(f"{path}: a link that leads out of its folder: put the file itself there")


def read_text(path: Path, limit: int = MAX_TEXT) -> str:
    """A file of text, at most `limit` bytes long.

    Raises:
        InputError: It is no such file, or not UTF-8.
    """
    check_file(path, limit)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({_reason(error)})") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most `MAX_JSON` bytes.

    Raises:
        InputError: The file holds something else.
    """
    text = read_text(path, MAX_JSON)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({_reason(error)})") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: a {type(found).__name__}, expected a JSON object")
    return found


def check_archive(path: Path) -> list[zipfile.ZipInfo]:
    """The entries of a zip file as torch and numpy write it: stored, apart, without links.

    Raises:
        InputError: It is none, or its entries are packed, overlap, or have names that lead away.
    """
    check_file(path)
    try:
        with path.open("rb") as file:
            _check_directory(file, path)
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
    except InputError:
        raise
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError) as error:
        raise InputError(
            f"{path}: cannot be read as a checkpoint, it may be truncated ({_reason(error)})"
        ) from error
    for entry in entries:
        _check_entry(entry, path)
    total, size = sum(entry.file_size for entry in entries), path.stat().st_size
    if total > size:
        raise InputError(f"{path}: claims {total} bytes of content in a file of {size}")
    if len({entry.filename for entry in entries}) != len(entries):
        raise InputError(f"{path}: several entries of one name")
    return entries


def _check_directory(file: BinaryIO, path: Path) -> None:
    """The directory of a zip file is small enough to read: its size is in the last bytes."""
    end = file.seek(0, 2)
    tail_at = max(end - _FOOTER.size - _LOCATOR64.size - 65_535, 0)
    file.seek(tail_at)
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0:
        raise zipfile.BadZipFile("no end of archive")
    size = _FOOTER.unpack_from(tail, at)[5]
    if tail[max(at - _LOCATOR64.size, 0) :][:4] == b"PK\6\7":
        file.seek(_LOCATOR64.unpack_from(tail, at - _LOCATOR64.size)[2])
        size = _FOOTER64.unpack(file.read(_FOOTER64.size))[8]
    if size > MAX_DIRECTORY:
        raise InputError(
            f"{path}: {size} bytes list its content, more than the {MAX_DIRECTORY} that are read"
        )


def _check_entry(entry: zipfile.ZipInfo, path: Path) -> None:
    name = PurePosixPath(entry.filename)
    if name.is_absolute() or ".." in name.parts or "\\" in entry.orig_filename or not name.parts:
        raise InputError(f"{path}: an entry named {entry.orig_filename[:80]!r} leads out of it")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise InputError(f"{path}: the entry {entry.filename[:80]!r} is a link")
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise InputError(
            f"{path}: the entry {entry.filename[:80]!r} is packed to {entry.compress_size} of "
            f"{entry.file_size} bytes: checkpoints are never packed"
        )


def check_torch_archive(path: Path) -> None:
    """A file that torch.save wrote of tensors and plain values, and that runs no code.

    Raises:
        InputError: It is none, or its pickle names a function or class that no checkpoint needs.
    """
    entries = check_archive(path)
    pickles = [entry for entry in entries if PurePosixPath(entry.filename).name == "data.pkl"]
    if len(pickles) != 1:
        raise InputError(f"{path}: a zip file, but not one that torch.save wrote (no data.pkl)")
    if pickles[0].file_size > MAX_TEXT:
        raise InputError(
            f"{path}: {pickles[0].file_size} bytes beside the weights, more than {MAX_TEXT}"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            most = min(MAX_OPCODES, 20_000 + 60 * len(entries))
            check_pickle(archive.read(pickles[0]), path, most)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"{path}: cannot be read as a checkpoint ({_reason(error)})") from error


def check_pickle(data: bytes, path: Path, most: int) -> None:
    """A pickle of tensors and plain values, of at most `most` opcodes.

    Raises:
        InputError: It is broken, or has an opcode or a global beyond those.
    """
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if number >= most:
                raise InputError(f"{path}: more than {most} opcodes beside the weights")
            if opcode.name not in _OPCODES or (
                opcode.name == "GLOBAL" and argument not in _GLOBALS
            ):
                what = f"{opcode.name} {argument or ''}".strip()[:80]
                raise InputError(
                    f"{path}: holds more than weights and plain values ({what}), which could run "
                    "code: it was not loaded"
                )
    except InputError:
        raise
    except Exception as error:  # pickletools raises what it likes on broken input
        raise InputError(f"{path}: its pickle is damaged ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    said = (getattr(error, "strerror", None) or str(error)).splitlines()
    return (said or [type(error).__name__])[0][:120]
