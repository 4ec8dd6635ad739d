"""Hostile `.ckpt` files: code in pickles, and archives that lie."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

Maker = Callable[[Path, Path, Path], Path]


def _entries(checkpoint: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(checkpoint) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _root(entries: dict[str, bytes]) -> str:
    return next(iter(entries)).partition("/")[0]


def write_zip(path: Path, entries: dict[str, bytes], packed: bool = False) -> Path:
    """A zip file of these entries."""
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def _with_pickle(data: Callable[[Path], bytes]) -> Maker:
    """The checkpoint with another pickle; `data` is told which file to create as its harm."""

    def make(checkpoint: Path, folder: Path, place: Path) -> Path:
        entries = _entries(checkpoint)
        entries[f"{_root(entries)}/data.pkl"] = data(place / "HARM")
        return write_zip(place / "x.ckpt", entries)

    return make


def _call(function: str, argument: str) -> bytes:
    """A pickle of protocol 2 that calls `module name` with one string."""
    module, name = function.split()
    text = argument.encode()
    string = b"X" + struct.pack("<I", len(text)) + text
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + string + b"\x85R."


def _stack_call(function: str, argument: str) -> bytes:
    """The same in protocol 4, in which the name of the function is not one opcode."""
    parts = [b"\x8c" + bytes([len(part)]) + part.encode() for part in function.split()]
    text = argument.encode()
    return (
        b"\x80\x04" + b"".join(parts) + b"\x93X" + struct.pack("<I", len(text)) + text + b"\x85R."
    )


def _inside_tensor(harm: Path) -> bytes:
    call = _call("posix system", f"touch {harm}")[2:-1]
    return b"\x80\x02}X\x07\x00\x00\x00mixture" + call + b"s."


def _raw(write: Callable[[Path, Path], None]) -> Maker:
    def make(checkpoint: Path, folder: Path, place: Path) -> Path:
        write(place / "x.ckpt", place / "HARM")
        return place / "x.ckpt"

    return make


def _tar(path: Path, harm: Path) -> None:
    with tarfile.open(path, "w") as archive:
        data = _call("posix system", f"touch {harm}")
        info = tarfile.TarInfo("pickle")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))


def _script(path: Path, harm: Path) -> None:
    entries = {"x/data.pkl": pickle.dumps({}, 2), "x/constants.pkl": pickle.dumps((), 2)}
    write_zip(path, {**entries, "x/code/__torch__.py": b"import os"})


def _bomb(checkpoint: Path, folder: Path, place: Path) -> Path:
    entries = _entries(checkpoint)
    return write_zip(place / "x.ckpt", {**entries, "x/data/z": bytes(200 * 10**6)}, packed=True)


def _packed_pickle(checkpoint: Path, folder: Path, place: Path) -> Path:
    entries = {"x/data.pkl": b"\x80\x02" + b"]" * (200 * 10**6)}
    return write_zip(place / "x.ckpt", entries, packed=True)


def _overlap(checkpoint: Path, folder: Path, place: Path) -> Path:
    """Many names for the same bytes, so that their sizes add up to more than the file."""
    path = write_zip(place / "x.ckpt", {"x/data.pkl": bytes(10**6)})
    with zipfile.ZipFile(path, "a") as archive:
        first = archive.infolist()[0]
        for number in range(2000):
            copy = zipfile.ZipInfo(f"x/data/{number}")
            copy.header_offset, copy.CRC = first.header_offset, first.CRC
            copy.file_size = copy.compress_size = first.file_size
            archive.filelist.append(copy)
        archive._didModify = True  # type: ignore[attr-defined]
    return path


def _many_entries(checkpoint: Path, folder: Path, place: Path) -> Path:
    return write_zip(place / "x.ckpt", {f"x/data/{n:08d}{'y' * 60}": b"" for n in range(60_000)})


def _claims(claim: bytes, at: int) -> Maker:
    """The checkpoint with other bytes at an offset into the end of its directory."""

    def make(checkpoint: Path, folder: Path, place: Path) -> Path:
        data = bytearray(write_zip(place / "x.ckpt", _entries(checkpoint)).read_bytes())
        end = data.rfind(b"PK\5\6") + at
        data[end : end + len(claim)] = claim
        (place / "x.ckpt").write_bytes(data)
        return place / "x.ckpt"

    return make


def _claimed_size(checkpoint: Path, folder: Path, place: Path) -> Path:
    """An entry that claims to be 4 GB long."""
    data = bytearray(write_zip(place / "x.ckpt", _entries(checkpoint)).read_bytes())
    entry = data.find(b"PK\1\2")
    data[entry + 20 : entry + 28] = struct.pack("<2I", 4 * 10**9, 4 * 10**9)
    (place / "x.ckpt").write_bytes(data)
    return place / "x.ckpt"


def _named(name: str) -> Maker:
    def make(checkpoint: Path, folder: Path, place: Path) -> Path:
        return write_zip(place / "x.ckpt", {**_entries(checkpoint), name: b"harm"})

    return make


def _twice(checkpoint: Path, folder: Path, place: Path) -> Path:
    path = write_zip(place / "x.ckpt", _entries(checkpoint))
    with zipfile.ZipFile(path, "a") as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        other = name.replace("data.pkl", "data.pkz")
        archive.writestr(other, _call("posix system", f"touch {place / 'HARM'}"))
    data = path.read_bytes().replace(other.encode(), name.encode())
    path.write_bytes(data)
    return path


def _link(checkpoint: Path, folder: Path, place: Path) -> Path:
    path = write_zip(place / "x.ckpt", _entries(checkpoint))
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("x/data/link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return path


def _missing_storage(checkpoint: Path, folder: Path, place: Path) -> Path:
    entries = _entries(checkpoint)
    return write_zip(place / "x.ckpt", {k: v for k, v in entries.items() if not k.endswith("/3")})


def _short_storage(checkpoint: Path, folder: Path, place: Path) -> Path:
    entries = _entries(checkpoint)
    return write_zip(
        place / "x.ckpt", {k: v[:-4] if k.endswith("data/3") else v for k, v in entries.items()}
    )


TOUCH = "touch {}".format
ZIPS: dict[str, Maker] = {
    "os.system": _with_pickle(lambda harm: _call("os system", TOUCH(harm))),
    "posix.system": _with_pickle(lambda harm: _call("posix system", TOUCH(harm))),
    "eval": _with_pickle(lambda harm: _call("builtins eval", f"open({str(harm)!r}, 'w')")),
    "exec": _with_pickle(lambda harm: _call("builtins exec", f"open({str(harm)!r}, 'w')")),
    "Python 2 eval": _with_pickle(lambda harm: _call("__builtin__ eval", f"open({str(harm)!r})")),
    "subprocess": _with_pickle(lambda harm: _call("subprocess getoutput", TOUCH(harm))),
    "runpy": _with_pickle(lambda harm: _call("runpy run_path", str(harm))),
    "stack global": _with_pickle(lambda harm: _stack_call("posix system", TOUCH(harm))),
    "code as a value": _with_pickle(_inside_tensor),
    "torch.load again": _with_pickle(lambda harm: _call("torch load", str(harm))),
    "instance": _with_pickle(lambda harm: b"(i" + b"posix\nsystem\n."),
    "big bytearray": _with_pickle(
        lambda harm: b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x01\x85R."
    ),
    "endless pickle": _with_pickle(lambda harm: b"\x80\x02" + b"]" * 3_000_000 + b"."),
    "broken pickle": _with_pickle(lambda harm: b"\x80\x02X\xff\xff\xff\x7fabc"),
    "empty pickle": _with_pickle(lambda harm: b""),
    "bare pickle": _raw(lambda path, harm: _write(path, _call("posix system", TOUCH(harm)))),
    "bare pickle, packed": _raw(
        lambda path, harm: _write(path, gzip.compress(_call("posix system", TOUCH(harm))))
    ),
    "tar": _raw(_tar),
    "TorchScript": _raw(_script),
    "text": _raw(lambda path, harm: _write(path, b"weights" * 1000)),
    "zip bomb": _bomb,
    "packed pickle": _packed_pickle,
    "overlapping entries": _overlap,
    "many entries": _many_entries,
    "directory of 4 GB": _claims(b"\xf0\xff\xff\xff", 12),
    "directory elsewhere": _claims(b"\xf0\xff\xff\xff", 16),
    "entry of 4 GB": _claimed_size,
    "upwards": _named("../HARM"),
    "absolute": _named("/tmp/HARM"),
    "upwards inside": _named("x/../../HARM"),
    "backslashes": _named("..\\HARM"),
    "two pickles": _twice,
    "link": _link,
    "missing storage": _missing_storage,
    "short storage": _short_storage,
}


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
