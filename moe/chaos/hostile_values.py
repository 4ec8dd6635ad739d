"""Hostile `.ckpt` files that torch.save wrote: wrong names, shapes, types and numbers."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Maker = Callable[[Path, Path, Path], Path]
Content = dict[str, Any]


def _changed(change: Callable[[Content], Any]) -> Maker:
    def make(checkpoint: Path, folder: Path, place: Path) -> Path:
        content = torch.load(checkpoint, weights_only=True)
        change(content)
        torch.save(content, place / "x.ckpt")
        return place / "x.ckpt"

    return make


def _weight(change: Callable[[torch.Tensor], Any]) -> Maker:
    """One matrix of the encoder replaced."""

    def apply(content: Content) -> None:
        state = content["state_dict"]
        name = next(n for n in state if n.endswith("q_lin.weight"))
        state[name] = change(state[name])

    return _changed(apply)


def _set(*path: Any, to: Any) -> Maker:
    def apply(content: Content) -> None:
        inner: Any = content
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = to

    return _changed(apply)


def _dropped(content: Content) -> None:
    content["state_dict"].popitem()


def _added(content: Content) -> None:
    content["state_dict"]["model.extra"] = torch.zeros(3)


def _non_finite_optimizer(content: Content) -> None:
    content["optimizer_states"] = [{"state": {0: {"exp_avg": torch.tensor([float("nan")])}}}]


INSTANTIATOR = {"_instantiator": "os.system", "class_path": "os.system"}
VALUES: dict[str, Maker] = {
    "Lightning's _instantiator": _set("hyper_parameters", to=INSTANTIATOR),
    "_instantiator of the data": _set("datamodule_hyper_parameters", to=INSTANTIATOR),
    "_instantiator in the config": _set("mixture", "config", "_instantiator", to="os.system"),
    "unknown entry": _set("extra", to=1),
    "unknown entry of the model": _set("mixture", "extra", to=1),
    "unknown key of the config": _set("mixture", "config", "model", "gate", "extra", to=1),
    "unknown weight": _changed(_added),
    "missing weight": _changed(_dropped),
    "one row more": _weight(lambda weight: torch.zeros(len(weight) + 1, weight.shape[1])),
    "a scalar": _weight(lambda weight: torch.tensor(1.0)),
    "expanded to 4 TB": _weight(lambda weight: torch.zeros(1).expand(10**6, 10**6)),
    "integers": _weight(lambda weight: weight.long()),
    "complex numbers": _weight(lambda weight: weight.to(torch.complex64)),
    "a string": _weight(lambda weight: "weights"),
    "sparse": _weight(lambda weight: weight.to_sparse()),
    "NaN": _weight(lambda weight: weight.index_fill(0, torch.tensor([0]), float("nan"))),
    "infinity": _weight(lambda weight: weight.index_fill(0, torch.tensor([0]), float("inf"))),
    "NaN in the optimizer": _changed(_non_finite_optimizer),
    "a million layers": _set("mixture", "encoder", "n_layers", to=10**6),
    "a million experts": _set("mixture", "tasks", 0, "num_experts", to=10**6),
    "a width of a billion": _set("mixture", "encoder", "dim", to=10**9),
    "a vocabulary of 10^15": _set("mixture", "encoder", "vocab_size", to=10**15),
    "a negative width": _set("mixture", "encoder", "hidden_dim", to=-1),
    "text for a number": _set("mixture", "config", "data", "max_length", to="long"),
    "no tokenizer": _set("mixture", "tokenizer", to="{}"),
    "tasks that are none": _set("mixture", "tasks", to=7),
    "another version": _set("mixture", "format_version", to=99),
    "weights that are none": _set("state_dict", to=[1, 2]),
}


def header(length: int, text: bytes = b"") -> bytes:
    """The beginning of a safetensors file that claims a header of `length` bytes."""
    return struct.pack("<Q", length) + text
