"""Trainings in forked processes, which save the seconds of their imports, and their outcome."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import moe.training  # noqa: F401  # imported once, not in every child

TRAIN = Path(__file__).parents[2] / "train.py"


def fork(work: Callable[[], Any], log: Path, **environment: str) -> int:
    """Runs `work` in a child with a session of its own; its output goes to a file.

    The parent must compute nothing with torch on several threads before: they do not survive a
    fork.

    Returns:
        The child's process id.
    """
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()
        os.environ.update(environment)
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        # Of a test they are the capture's, which knows nothing of the descriptors.
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        torch.set_num_threads(1)
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def program(file: Path, *arguments: object) -> Callable[[], Any]:
    """A program with these arguments, to be run by `fork`."""

    def work() -> None:
        sys.argv = [file.name, *map(str, arguments)]
        runpy.run_path(str(file), run_name="__main__")

    return work


def train(*arguments: object) -> Callable[[], Any]:
    """`train.py` with these arguments, to be run by `fork`."""
    return program(TRAIN, *arguments)


def wait(process: int, seconds: float = 600.0) -> int:
    """The exit code of a child, minus the signal if one ended it; after that time it is killed."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    kill_group(process)
    os.waitpid(process, 0)
    return -signal.SIGKILL


def kill_group(process: int) -> None:
    """SIGKILL for a child and what it started."""
    os.killpg(process, signal.SIGKILL)


def finish(folder: Path, log: Path, **environment: str) -> int:
    """Goes on with a run to its end; returns the exit code."""
    return wait(fork(train("--resume", folder), log, **environment))


def run_folder(root: Path) -> Path:
    """The only run under `root`."""
    return root / "tiny" / "version_0"


def leftovers(folder: Path) -> list[str]:
    """Names in a finished run's `checkpoints/` that should not be there."""
    expected = {"best.ckpt", "last.ckpt", "last-1.ckpt", "SHA256SUMS"}
    return sorted({path.name for path in (folder / "checkpoints").iterdir()} - expected)


def differences(one: Path, other: Path) -> list[str]:
    """Where two runs' last checkpoints differ, every entry compared, their own paths aside."""
    contents = []
    for folder in (one, other):
        path = folder / "checkpoints" / "last.ckpt"
        contents.append(_without(torch.load(path, weights_only=True), str(folder.resolve())))
    return list(_compare(contents[0], contents[1], ""))


def _without(content: Any, folder: str) -> Any:
    if isinstance(content, dict):
        return {_without(k, folder): _without(v, folder) for k, v in content.items()}
    if isinstance(content, list | tuple):
        return [_without(value, folder) for value in content]
    return content.replace(folder, "RUN") if isinstance(content, str) else content


def _compare(one: Any, other: Any, place: str) -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        found = [f"{place}.{key} is in one only" for key in one.keys() ^ other.keys()]
        for key in one.keys() & other.keys():
            found += _compare(one[key], other[key], f"{place}.{key}")
        return found
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        parts = enumerate(zip(one, other, strict=True))
        return [line for i, (a, b) in parts for line in _compare(a, b, f"{place}[{i}]")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = (one.dtype, one.shape) == (other.dtype, other.shape)
        alike = alike and torch.equal(_bytes(one), _bytes(other))  # a NaN equals itself
        return [] if alike else [f"{place}: tensors differ"]
    same = one == other or (one != one and other != other)
    return [] if same else [f"{place}: {str(one)[:60]} and {str(other)[:60]}"]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
