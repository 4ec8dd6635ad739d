"""From a checkpoint to a folder that answers without torch: ONNX graphs, tokenizer, numbers."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moe.checkpoint import MODEL_TYPE, Bundle, load_bundle
from moe.onnx.bundle import CONFIG, FILES, FORMAT, FORMAT_VERSION, REFERENCE, TOKENIZER
from moe.types import InputError

if TYPE_CHECKING:
    from moe.onnx.parity import Exported


def export(source: str | Path, out: str | Path, *, int8: bool = False) -> Exported:
    """Writes a folder for `backend="onnx"`, checked against torch, or nothing.

    Args:
        source: A `.ckpt`, a folder, or a hub id.
        out: A folder that is not there yet, or empty.
        int8: Write a graph with 8-bit weights, too.

    Raises:
        InputError: The source cannot be read, or `out` is not empty.
        ParityError: A graph answers otherwise than torch by more than is allowed.
    """
    _need("onnx", "onnxscript", "onnxruntime")
    out = Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: is there and not empty: remove it, or name another folder")
    bundle = load_bundle(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.parent / f".{out.name}.{os.getpid()}"
    unfinished.mkdir()
    try:
        exported = write(bundle, unfinished, int8=int8)
        unfinished.rename(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return exported


def _need(*modules: str) -> None:
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise InputError(
            f"export needs {', '.join(missing)}, which is not installed: pip install -e '.[export]'"
        )


def write(bundle: Bundle, folder: Path, *, int8: bool, checked: bool = True) -> Exported:
    """Writes an export into a folder that is there.

    Args:
        bundle: The model.
        folder: Where to.
        int8: Write a graph with 8-bit weights, too.
        checked: Compare the graphs with torch; `moe.benchmarks` does without on random weights.

    Raises:
        ParityError: A graph answers otherwise than torch by more than is allowed.
    """
    # Here, after the look at what is installed.
    import onnx
    import torch

    from moe.onnx.graph import join
    from moe.onnx.parity import Exported, check_parity
    from moe.onnx.parts import export_parts
    from moe.onnx.rounding import quantise
    from moe.onnx.samples import rounding_samples

    parts, parity, rounded = export_parts(bundle.model), {}, None
    for precision in ("fp32", "int8") if int8 else ("fp32",):
        if precision == "int8":
            rounded = quantise(parts, rounding_samples(bundle), torch.get_num_threads())
        file = folder / FILES[precision]
        onnx.save(join(rounded.parts if rounded else parts), file)
        if checked:
            parity[precision] = check_parity(bundle, file, precision)
    arrays: dict[str, Any] = bundle.calibration.arrays()
    if arrays:
        # Half precision, as in the checkpoint: that is what the threshold was fitted with.
        np.savez(folder / REFERENCE, **{k: v.astype(np.float16) for k, v in arrays.items()})
    (folder / TOKENIZER).write_text(bundle.tokenizer.to_json(), encoding="utf-8")
    exported = Exported(parity=parity, rounding=rounded.report() if rounded else {})
    config = json.dumps(_config(bundle, exported), indent=2)
    (folder / CONFIG).write_text(config, encoding="utf-8")
    return exported


def _config(bundle: Bundle, exported: Exported) -> dict[str, Any]:
    model, data = bundle.model, bundle.config.data
    windows = ("max_length", "stride", "max_tokens", "max_padding")
    return {
        "model_type": MODEL_TYPE,
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tasks": [asdict(task) for task in model.tasks],
        "calibration": bundle.calibration.to_dict(),
        "gate": {
            "top_k": model.top_k,
            "multi_task_threshold": model.multi_task_threshold,
            "selection_bias": model.gate.expert_bias.tolist(),
        },
        "windows": {name: getattr(data, name) for name in windows},
        "precisions": ["fp32", "int8"] if exported.rounding else ["fp32"],
        "parity": {name: asdict(measured) for name, measured in exported.parity.items()},
        "rounding": exported.rounding,
        "metrics": bundle.metrics,
    }
