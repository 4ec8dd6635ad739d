"""Damages of an export to ONNX."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx

from moe.checkpoint import load_bundle
from moe.onnx.bundle import FILES
from moe.onnx.export import write
from moe.onnx.graph import Parts, join
from moe.onnx.int8 import round_products
from moe.onnx.parts import export_parts
from moe.onnx.rounding import named_parts, replace_parts

ExportFault = Callable[[Parts], Parts]


def expert_dropped(parts: Parts) -> Parts:
    """The graph lacks the last expert that the config names."""
    return replace(parts, experts=parts.experts[:-1])


def wrong_layers_rounded(parts: Parts) -> Parts:
    """8 bits everywhere, heads too, with the outliers of the activations where they were."""
    changed = {}
    for name, part in named_parts(parts).items():
        if name != "gate":
            changed[name] = copy.deepcopy(part)
            round_products(changed[name], smallest=1)
    return replace_parts(parts, changed)


EXPORT_FAULTS: dict[str, ExportFault] = {
    "an expert dropped from the ONNX graph": expert_dropped,
    "8 bits in the wrong layers": wrong_layers_rounded,
}


def damaged_export(ckpt: str | Path, fault: ExportFault, folder: Path) -> Path:
    """Writes an export of a checkpoint whose graph is damaged."""
    bundle = load_bundle(ckpt)
    folder.mkdir(parents=True)
    write(bundle, folder, int8=False, checked=False)
    onnx.save(join(fault(export_parts(bundle.model))), folder / FILES["fp32"])
    return folder
