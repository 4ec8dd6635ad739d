"""Whether saved tensors are those that a model needs: names, shapes, kinds, finite values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def mismatch(expected: Mapping[str, Tensor], saved: Mapping[str, Any]) -> str | None:
    """The first difference in words, None if there is none; reads no value.

    A floating-point tensor may have been saved in another floating-point type.
    """
    missing, unknown = (
        sorted(expected.keys() - saved.keys()),
        sorted(saved.keys() - expected.keys()),
    )
    if missing:
        return f"missing {missing[0]!r}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
    if unknown:
        return f"unknown {unknown[0]!r}" + (f" and {len(unknown) - 1} more" if unknown[1:] else "")
    for name, tensor in expected.items():
        given = saved[name]
        if not isinstance(given, Tensor):
            return f"{name} is a {type(given).__name__}, not a tensor"
        if given.shape != tensor.shape:
            return f"{name} has shape {tuple(given.shape)}, expected {tuple(tensor.shape)}"
        if given.layout != torch.strided:
            return f"{name} has layout {given.layout}, expected a dense tensor"
        same_kind = given.is_floating_point() and tensor.is_floating_point()
        if given.dtype != tensor.dtype and not same_kind:
            return f"{name} is {given.dtype}, expected {tensor.dtype}"
    return None


def first_non_finite(content: Any, name: str = "") -> str | None:
    """Name of the first tensor inside nested dictionaries and lists with a NaN or an infinity."""
    for place, tensor in _tensors(content, name):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return place
    return None


def _tensors(content: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(content, list | tuple):
        for number, value in enumerate(content):
            yield from _tensors(value, f"{name}[{number}]")
