"""Looks at an ONNX file before the runtime opens it; needs no onnx package.

The runtime reads tensors from any file that a graph names ("external data"). An export of this
project is one file, so a graph that names another is refused. Messages and field numbers are those
of onnx.proto3; the encoding is that of Protocol Buffers.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from moe.types import InputError
from moe.untrusted import check_file

MAX_GRAPH = 2 * 10**9  # bytes; a file of Protocol Buffers holds no more
_MAX_DEPTH = 60  # of messages inside messages

# Message -> field -> the message that the field holds.
_HOLDS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Function": {7: "Node", 11: "Attribute"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Training": {1: "Graph", 2: "Graph"},
    "Tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a Tensor


def check_graph(path: Path) -> None:
    """A graph that holds all its tensors itself.

    Raises:
        InputError: It names another file, is broken, or is too large.
    """
    check_file(path, MAX_GRAPH)
    if path.stat().st_size == 0:
        raise InputError(f"{path}: empty: export again")
    with path.open("rb") as file:
        # Not closed by hand: after an error its traceback still points into it.
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        external = _names_a_file(data, "Model", 0)
    except (IndexError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a graph ({error}): export again") from error
    if external:
        raise InputError(
            f"{path}: takes tensors from another file: only graphs in one file are read, as "
            "scripts/export.py writes them"
        )


def _names_a_file(data: memoryview, message: str, depth: int) -> bool:
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH}")
    for number, value in _fields(data):
        if message == "Tensor" and number in (_EXTERNAL_DATA, _DATA_LOCATION) and value != 0:
            return True
        inner = _HOLDS[message].get(number)
        if inner and isinstance(value, memoryview) and _names_a_file(value, inner, depth + 1):
            return True
    return False


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: an integer, or the bytes of a message or a string."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
        elif kind == 2:
            length, at = _varint(data, at)
            if length > len(data) - at:
                raise ValueError(f"a field of {length} bytes where {len(data) - at} are left")
            yield number, data[at : at + length]
            at += length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of kind {kind}")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
