"""What an operation changed and what provably not: SHA-256 of every tensor and fitted number."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from moe.checkpoint import Bundle, kept_tensors


def digest(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and bytes."""
    values = tensor.detach().cpu().contiguous()
    content = hashlib.sha256(f"{values.dtype} {tuple(values.shape)} ".encode())
    content.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


def digests(bundle: Bundle) -> dict[str, str]:
    """By name: weights, kept embeddings, and the fitted numbers as `calibration.*`."""
    state = bundle.model.state_dict() | kept_tensors(bundle)
    numbers = _flat("calibration", bundle.calibration.to_dict())
    return {name: digest(tensor) for name, tensor in state.items()} | {
        name: hashlib.sha256(repr(value).encode()).hexdigest() for name, value in numbers.items()
    }


def _flat(name: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        nested = [_flat(f"{name}.{key}", inner) for key, inner in value.items()]
        return {key: inner for part in nested for key, inner in part.items()}
    return {name: value}


def part_of(name: str) -> str:
    """The part of the model that a tensor belongs to: `encoder`, `gate`, `experts.qa-0` ..."""
    words = name.split(".")
    return ".".join(words[:2]) if words[0] in ("experts", "gate") and len(words) > 2 else words[0]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Names of tensors and fitted numbers, by what happened to them."""

    same: tuple[str, ...]
    changed: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """How many there are of each, for the history."""
        return {name: len(getattr(self, name)) for name in ("same", "changed", "added", "removed")}


def difference(before: Mapping[str, str], after: Mapping[str, str]) -> Difference:
    """What two results of `digests` say."""
    both = [name for name in before if name in after]
    return Difference(
        same=tuple(name for name in both if before[name] == after[name]),
        changed=tuple(name for name in both if before[name] != after[name]),
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
    )


def proof_text(found: Difference) -> str:
    """One line for each part: how many of its tensors and numbers are SHA-256-equal."""
    rows = [(part_of(name), kind) for kind in found.counts() for name in getattr(found, kind)]
    lines = [f"{'part':<24}{'same':>8}{'changed':>9}{'added':>7}{'removed':>9}"]
    for part, mine in groupby(sorted(rows), key=lambda row: row[0]):
        kinds = [kind for _, kind in mine]
        counts = [kinds.count(kind) for kind in ("same", "changed", "added", "removed")]
        lines.append("{:<24}{:>8}{:>9}{:>7}{:>9}".format(part, *counts))
    return "\n".join(lines)
