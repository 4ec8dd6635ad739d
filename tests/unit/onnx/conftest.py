"""One tiny export in both precisions that all tests of this folder read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxscript", reason="the extra [export] is not installed")

import onnxruntime

from moe.abstain import Reference
from moe.calibration import Calibration
from moe.checkpoint import Bundle, save_bundle
from moe.onnx import parity as onnx_parity
from moe.onnx import parts as onnx_parts
from moe.onnx.bundle import FILES
from moe.onnx.export import export
from moe.onnx.graph import Parts
from moe.onnx.parity import TOLERANCES, Tolerance
from moe.types import TaskSpec

CALIBRATION = Calibration(
    temperature={"sentiment-0": 1.5, "intent-0": 0.7, "slots-0": 1.2},
    out_of_scope={"intent": 0.1},
    no_answer={"qa": 0.2},
)
_kept: dict[str, Any] = {}  # what takes seconds is made once

Session = onnxruntime.InferenceSession
Outputs = dict[str, np.ndarray]


@pytest.fixture
def tiny_tasks() -> tuple[TaskSpec, ...]:
    """Experts 0 and 1 answer sentiment, 2 answers qa, 3 answers intent, 4 answers slots."""
    return (
        TaskSpec(name="sentiment", type="classifier", num_experts=2, labels=("bad", "good")),
        TaskSpec(name="qa", type="span", num_experts=1),
        TaskSpec(name="intent", type="classifier", num_experts=1, labels=("pay", "ask", "go"),
                 out_of_scope="oos"),
        TaskSpec(name="slots", type="tagger", num_experts=1,
                 labels=("O", "B-who", "I-who", "B-what", "I-what")),
    )


@pytest.fixture
def bundle(
    word_bundle: Callable[..., Bundle], tiny_encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> Bundle:
    """It reads 512 tokens; the check asks less of it, to be done in a second."""
    monkeypatch.setattr(onnx_parity, "SIZES", ((1, 1), (64, 1), (5, 7), (1, 64), (64, 64)))
    made = word_bundle(CALIBRATION)
    made.model.encoder = tiny_encoder(vocab_size=120, max_position_embeddings=512).eval()
    made.model.gate.selection_bias += torch.tensor([0.0, 3.0, 0.0, -1.0, 0.0])
    return made


@pytest.fixture
def parts(bundle: Bundle) -> Parts:
    if "parts" not in _kept:
        _kept["parts"] = onnx_parts.export_parts(bundle.model)
    return _kept["parts"]


@pytest.fixture
def model_folder(
    bundle: Bundle, parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A saved model whose parts need not be exported again."""
    monkeypatch.setattr(onnx_parts, "export_parts", lambda model: parts)
    save_bundle(bundle, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def folder(
    model_folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An export in both precisions."""
    if "folder" not in _kept:
        # An untrained model decides by a hair: what 8 bits must keep is tested on its logits.
        loose = Tolerance(difference=np.inf, routing=0.5, answer=0.0)
        monkeypatch.setitem(TOLERANCES, "int8", loose)
        out = tmp_path_factory.mktemp("onnx") / "out"
        export(model_folder, out, int8=True)
        _kept["folder"] = out
    return _kept["folder"]


@pytest.fixture
def changed(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Builds a copy of the export with other numbers in its config."""

    def build(reference: Reference | None = None, **gate: Any) -> Path:
        copy = shutil.copytree(folder, tmp_path / "changed")
        config = json.loads((copy / "config.json").read_text())
        config["gate"] |= gate
        if reference is not None:
            calibration = Calibration(reference=reference)
            config["calibration"]["abstain"] = calibration.to_dict()["abstain"]
            np.savez(copy / "reference.npz",
                     **{k: v.astype(np.float16) for k, v in calibration.arrays().items()})
        (copy / "config.json").write_text(json.dumps(config))
        return copy

    return build


@pytest.fixture
def session(folder: Path) -> Callable[..., Session]:
    """Opens the exported graph of a precision, on one thread."""

    def build(precision: str = "fp32") -> Session:
        return _open(str(folder / FILES[precision]))

    return build


@pytest.fixture
def open_part() -> Callable[..., Session]:
    """Opens a graph in memory, on one thread."""
    return lambda model: _open(model.SerializeToString())


def _open(graph: str | bytes) -> Session:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return Session(graph, options, providers=["CPUExecutionProvider"])


@pytest.fixture
def run() -> Callable[..., Outputs]:
    """Runs a session; its outputs by name."""

    def outputs(graph: Session, feeds: dict[str, np.ndarray]) -> Outputs:
        names = [value.name for value in graph.get_outputs()]
        return dict(zip(names, graph.run(None, feeds), strict=True))

    return outputs


@pytest.fixture
def feeds() -> Callable[..., dict[str, np.ndarray]]:
    """Builds token rows; half of the last one is padding, every other one has a passage."""
    from moe.onnx.parity import token_rows

    def build(count: int, length: int) -> dict[str, np.ndarray]:
        ids = np.random.default_rng(count * 100 + length).integers(4, 100, 997, dtype=np.int32)
        rows = token_rows(ids, count, length)
        return {"input_ids": rows.input_ids,
                "attention_mask": rows.attention_mask.astype(np.int64),
                "context_mask": rows.context_mask.astype(np.int64)}

    return build
