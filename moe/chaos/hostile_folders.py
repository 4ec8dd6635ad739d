"""Hostile model folders: links, headers that lie, broken and endless text."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from moe.chaos.hostile_values import header

Maker = Callable[[Path, Path, Path], Path]


def _changed(change: Callable[[Path], Any]) -> Maker:
    """A copy of the whole folder, changed."""

    def make(checkpoint: Path, folder: Path, place: Path) -> Path:
        copy = place / "model"
        shutil.copytree(folder, copy)
        change(copy)
        return copy

    return make


def _linked(name: str, target: str | None = None) -> Maker:
    """One file is a link to `target`, or to itself."""

    def change(folder: Path) -> None:
        outside = folder.parent / "outside"
        shutil.copy(folder / name, outside)
        (folder / name).unlink()
        (folder / name).symlink_to(target or outside)

    return _changed(change)


def _weights(data: bytes) -> Maker:
    return _changed(lambda folder: (folder / "model.safetensors").write_bytes(data))


def _tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Maker:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return _changed(apply)


def _config(text: str) -> Maker:
    return _changed(lambda folder: (folder / "config.json").write_text(text))


def _lying_header() -> bytes:
    """A tensor of 4 GB in a file of a few bytes."""
    entry = {"dtype": "F32", "shape": [1000, 10**6], "data_offsets": [0, 4 * 10**9]}
    text = json.dumps({"x": entry}).encode()
    return header(len(text), text) + bytes(8)


def _sparse_file(folder: Path) -> None:
    """A file of 20 GB that takes no space on the disk."""
    os.truncate(folder / "model.safetensors", 20 * 10**9)


def _fifo(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")


def _device(checkpoint: Path, folder: Path, place: Path) -> Path:
    (place / "x.ckpt").symlink_to("/dev/zero")
    return place / "x.ckpt"


def _first(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in sorted(tensors) if name.endswith("q_lin.weight"))


FOLDERS: dict[str, Maker] = {
    "link of the config": _linked("config.json"),
    "link of the weights": _linked("model.safetensors"),
    "link of the tokenizer": _linked("tokenizer.json"),
    "link to the passwords": _linked("config.json", "/etc/passwd"),
    "circle of links": _linked("config.json", "config.json"),
    "link to a device": _device,
    "a pipe": _changed(_fifo),
    "header of 4 GB": _weights(header(4 * 10**9) + b"{}"),
    "header of 2^63": _weights(header(2**63) + b"{}"),
    "tensor of 4 GB": _weights(_lying_header()),
    "empty weights": _weights(b""),
    "file of 20 GB": _changed(_sparse_file),
    "unknown tensor": _tensors(lambda t: t.update(extra=torch.zeros(2))),
    "other shape": _tensors(lambda t: t.update({_first(t): torch.zeros(2, 2)})),
    "other type": _tensors(lambda t: t.update({_first(t): t[_first(t)].int()})),
    "NaN": _tensors(lambda t: t[_first(t)].fill_(float("nan"))),
    "deep JSON": _config("[" * 3_000_000),
    "JSON of many lists": _config("[" + "[]," * 2_000_000 + "[]]"),
    "a list": _config("[1, 2]"),
    "not UTF-8": _changed(lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe{}")),
    "broken tokenizer": _changed(lambda folder: (folder / "tokenizer.json").write_text("{}")),
}
