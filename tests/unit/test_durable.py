"""Files that are replaced whole or not at all, and their digests."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from moe import durable
from moe.durable import SUMS, check_digest, digest, read_sums, remove_leftovers, save


def put(path: Path, text: str, older: tuple[Path, ...] = ()) -> None:
    save(path, lambda file: file.write(text.encode()), older)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_and_its_digest(tmp_path: Path) -> None:
    put(tmp_path / "new" / "a.ckpt", "one")
    assert names(tmp_path / "new") == [SUMS, "a.ckpt"]
    expected = hashlib.sha256(b"one").hexdigest()
    assert (tmp_path / "new" / SUMS).read_text() == f"{expected}  a.ckpt\n"
    done = subprocess.run(["sha256sum", "-c", SUMS], cwd=tmp_path / "new", capture_output=True)
    assert done.returncode == 0


def test_the_files_before_are_kept(tmp_path: Path) -> None:
    last, before = tmp_path / "last", tmp_path / "last-1"
    for text in ("one", "two", "three"):
        put(last, text, (before,))
    assert (last.read_text(), before.read_text()) == ("three", "two")
    assert read_sums(tmp_path) == {"last": {digest(last)}, "last-1": {digest(before)}}
    assert check_digest(last) == check_digest(before) == "whole"


def test_one_flipped_bit_is_damage(tmp_path: Path) -> None:
    put(tmp_path / "a", "one")
    put(tmp_path / "b", "two")
    (tmp_path / "a").write_bytes(b"onf")
    (tmp_path / "c").write_bytes(b"three")
    states = [check_digest(tmp_path / name) for name in "abc"]
    assert states == ["damaged", "whole", "unknown"]
    (tmp_path / SUMS).write_text("nonsense")
    assert check_digest(tmp_path / "a") == "unknown"


@pytest.mark.parametrize("die_at", range(6))
def test_killed_between_any_two_renames_every_file_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, die_at: int
) -> None:
    """A write renames SHA256SUMS, last to last-1, the new file to last, and SHA256SUMS again."""
    last, before = tmp_path / "last", tmp_path / "last-1"
    put(last, "one", (before,))
    put(last, "two", (before,))
    left, replace = [die_at], os.replace

    def dying(source: object, target: object) -> None:
        if left[0] == 0:
            raise KeyboardInterrupt  # nothing of a killed process runs after this
        left[0] -= 1
        replace(source, target)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(durable.os, "replace", dying)
        patch.setattr(durable.Path, "unlink", lambda *_, **__: None)
        if die_at < 4:
            with pytest.raises(KeyboardInterrupt):
                put(last, "three", (before,))
        else:
            put(last, "three", (before,))
    there = [path for path in (last, before) if path.exists()]
    assert [check_digest(path) for path in there] == ["whole"] * len(there)
    newest = {0: "two", 1: "two", 2: "two", 3: "three", 4: "three", 5: "three"}[die_at]
    assert there[0].read_text() == newest
    remove_leftovers(tmp_path)
    assert set(names(tmp_path)) <= {SUMS, "last", "last-1"}


def test_a_write_that_fails_changes_nothing(tmp_path: Path) -> None:
    put(tmp_path / "a", "one")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def write(file: durable.Writer) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "a", write)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_reason_survives_the_writers_own_error(tmp_path: Path) -> None:
    """torch.save says `RuntimeError: unexpected pos` where a disk is full."""

    class Full:
        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

    hashed = durable._Hashed(Full())  # type: ignore[arg-type]
    with pytest.raises(OSError):
        hashed.write(b"x")
    assert hashed.error is not None and hashed.error.errno == 28
