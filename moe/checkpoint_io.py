"""How Lightning writes and reads checkpoints here: durably, and falling back to the one before."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from moe.checkpoint import read_lightning
from moe.checkpoint_reading import TRAINED
from moe.durable import remove_leftovers, save
from moe.tensors import first_non_finite
from moe.types import InputError, NonFiniteError

LAST = "last.ckpt"
KEPT = 2  # `last.ckpt` and those before it


def last_files(folder: Path) -> list[Path]:
    """`last.ckpt` and its predecessors `last-1.ckpt` ..., newest first, whether there or not."""
    name = Path(LAST)
    return [folder / LAST] + [folder / f"{name.stem}-{n}{name.suffix}" for n in range(1, KEPT)]


class DurableIO(CheckpointIO):
    """Writes each file beside its target and moves it there, with a SHA-256; keeps the last ones.

    Nothing is written that holds a NaN or an infinity, so what is there can be gone on with.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Replaces the file, or leaves it as it was.

        Raises:
            NonFiniteError: A weight or a number of the optimizer is not finite.
            InputError: The disk is full, or the folder may not be written to.
        """
        path = Path(path)
        bad = first_non_finite({name: checkpoint[name] for name in TRAINED if name in checkpoint})
        if bad is not None:
            raise NonFiniteError(
                f"{bad} is not finite after optimizer step {checkpoint['global_step']}: "
                f"{path.name} was left as it was; lower optimizer.encoder_lr, or train in 32-true"
            )
        older = last_files(path.parent)[1:] if path.name == LAST else []
        try:
            save(path, lambda file: torch.save(checkpoint, cast(IO[bytes], file)), older)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error.strerror}), the file before it is as it was: "
                "free space or allow writing, then go on with --resume"
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """The content of a checkpoint of this project, read without running code."""
        return read_lightning(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a file, if it is there."""
        Path(path).unlink(missing_ok=True)


def take_up(folder: Path, say: Callable[[str], None] = print) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint to go on from, with its content; None if there was none yet.

    A damaged one is put aside as `NAME.damaged`, so that the next write does not push a whole
    one out.

    Args:
        folder: `checkpoints/` of a run.
        say: What to do with a line about what was found.

    Raises:
        InputError: All of them are damaged.
    """
    remove_leftovers(folder)
    damaged = []
    for path in last_files(folder):
        if not os.path.lexists(path):
            continue
        try:
            content = read_lightning(path)
        except InputError as error:
            damaged.append(path)
            say(str(error))
            continue
        if damaged:
            say(f"going on from {path}, of optimizer step {content['global_step']}")
        for bad in damaged:
            os.replace(bad, f"{bad}.damaged")
        return path, content
    if damaged:
        raise InputError(
            f"{folder}: no whole checkpoint to go on from: remove {', '.join(map(str, damaged))} "
            "to begin the run again"
        )
    return None
