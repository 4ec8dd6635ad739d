"""Damages of an export to ONNX."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from moe.checkpoint import load_bundle
from moe.onnx.bundle import FILES
from moe.onnx.export import write
from moe.onnx.graph import Parts, join
from moe.onnx.parts import export_parts
from moe.onnx.products import Floats32, set_weights, weights
from moe.onnx.rounding import named_parts, replace_parts

ExportFault = Callable[[Parts], Parts]


def expert_dropped(parts: Parts) -> Parts:
    """The graph lacks the last expert that the config names."""
    return replace(parts, experts=parts.experts[:-1])


def four_bits(parts: Parts) -> Parts:
    """Every matrix in 15 steps of one size, those that must stay as they are with the others."""
    changed = {name: copy.deepcopy(part) for name, part in named_parts(parts).items()}
    for part in changed.values():
        matrices = {n: w for n, w in weights(part).items() if w.ndim == 2 and w.dtype == np.float32}
        set_weights(part, {name: _rounded(matrix) for name, matrix in matrices.items()})
    return replace_parts(parts, changed)


def _rounded(matrix: Floats32) -> Floats32:
    step = max(float(np.abs(matrix).max()) / 7, 1e-12)
    return (np.rint(matrix / step) * step).astype(np.float32)


EXPORT_FAULTS: dict[str, ExportFault] = {
    "an expert dropped from the ONNX graph": expert_dropped,
    "an export in 4 bits": four_bits,
}


def damaged_export(ckpt: str | Path, fault: ExportFault, folder: Path) -> Path:
    """Writes an export of a checkpoint whose graph is damaged."""
    bundle = load_bundle(ckpt)
    folder.mkdir(parents=True)
    write(bundle, folder, int8=False, checked=False)
    onnx.save(join(fault(export_parts(bundle.model))), folder / FILES["fp32"])
    return folder
