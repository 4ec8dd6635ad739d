"""Broken checkpoint files, and disks that do not take one."""

from __future__ import annotations

import errno
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from moe import durable
from moe.chaos.process import fork, run_folder, train, wait
from moe.chaos.project import make_project
from moe.chaos.report import Report
from moe.checkpoint_io import DurableIO, last_files, take_up
from moe.types import InputError

NOBODY = 65534


def truncated(file: Path, chance: random.Random) -> None:
    """Cut at a random length."""
    os.truncate(file, chance.randrange(1, file.stat().st_size))


def flipped(file: Path, chance: random.Random) -> None:
    """One bit of one byte is another."""
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)


def emptied(file: Path, chance: random.Random) -> None:
    """Nothing in it."""
    file.write_bytes(b"")


DAMAGE: dict[str, Callable[[Path, random.Random], None]] = {
    "truncated": truncated,
    "flipped": flipped,
    "empty": emptied,
}


def corruptions(scratch: Path, each: int = 60) -> Report:
    """Five kinds of faults: each is noticed, and the newest whole checkpoint is used.

    Truncated, one bit flipped and empty files, files that may not be read, and writes to a disk
    that fills up at a random byte.
    """
    report, chance = Report(name="corruption"), random.Random(2)
    config = make_project(scratch, checkpoint_every=1)
    root = scratch / "whole"
    code = wait(fork(train("--config", config, "--trainer.default_root_dir", root), scratch / "l"))
    assert code == 0, f"the run ended with {code}, see {scratch / 'l'}"
    whole = run_folder(root) / "checkpoints"
    for number in range(each):
        for name, damage in DAMAGE.items():
            report.case(f"{name} {number}", _reading(whole, scratch / "case", chance, damage))
        report.case(f"unreadable {number}", _unreadable(whole, scratch / "case"))
        report.case(f"no space {number}", _no_space(whole, scratch / "case", chance))
    return report


def _copy(whole: Path, folder: Path) -> list[Path]:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    return last_files(folder)


def _same_content(one: dict[str, Any], path: Path) -> bool:
    other = torch.load(path, weights_only=True)
    state, saved = one["state_dict"], other["state_dict"]
    return one["global_step"] == other["global_step"] and all(
        torch.equal(tensor, saved[name]) for name, tensor in state.items()
    )


def _reading(
    whole: Path, folder: Path, chance: random.Random, damage: Callable[[Path, random.Random], None]
) -> list[str]:
    last, before = _copy(whole, folder)
    damage(last, chance)
    return _falls_back(folder, before, whole / before.name)


def _falls_back(folder: Path, before: Path, original: Path) -> list[str]:
    said: list[str] = []
    found = take_up(folder, said.append)
    if found is None or found[0] != before:
        return [f"took up {found and found[0].name}"]
    if not _same_content(found[1], original):
        return ["took up another state than the previous one"]
    return [] if len(said) == 2 and "going on from" in said[1] else [f"said {said}"]


def _unreadable(whole: Path, folder: Path) -> list[str]:
    last, before = _copy(whole, folder)
    last.chmod(0)
    folder.chmod(0o777)
    with _as_nobody():
        return _falls_back(folder, before, whole / before.name)


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Without the privileges of root, which may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def _no_space(whole: Path, folder: Path, chance: random.Random) -> list[str]:
    last, _ = _copy(whole, folder)
    content = torch.load(last, weights_only=True)
    before = sorted(path.name for path in folder.iterdir())
    try:
        with full_after(chance.randrange(last.stat().st_size)):
            DurableIO().save_checkpoint(content, last)
    except InputError as error:
        problems = [] if "No space left" in str(error) else [f"said {error}"]
    else:
        problems = ["was not noticed"]
    after = sorted(path.name for path in folder.iterdir())
    problems += [] if after == before else [f"left {after}"]
    found = take_up(folder, lambda line: None)
    if found is None or found[0] != last or not _same_content(found[1], whole / last.name):
        problems.append("the last checkpoint is not what it was")
    return problems


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """A disk that takes `size` more bytes of checkpoints in this process."""
    left = size
    write = durable._Hashed.write

    def limited(self: Any, data: bytes, /) -> int:
        nonlocal left
        left -= len(data)
        if left < 0:
            self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise self.error
        return write(self, data)

    durable._Hashed.write = limited  # type: ignore[method-assign]
    try:
        yield
    finally:
        durable._Hashed.write = write  # type: ignore[method-assign]
