"""The command: what it writes, what it says, and that it leaves nothing that fails its check."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moe.abstain import Reference
from moe.calibration import Calibration
from moe.checkpoint import Bundle, load_bundle, save_bundle
from moe.onnx import export as onnx_export
from moe.onnx.bundle import load_onnx
from moe.onnx.export import export
from moe.onnx.parity import TOLERANCES, Parity, Tolerance
from moe.onnx.samples import TEXTS
from moe.types import InputError

SCRIPT = Path(__file__).parents[3] / "scripts" / "export.py"


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_the_export_says_what_it_measured(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    measured = config["parity"]["fp32"]
    assert measured["texts"] == TEXTS
    assert measured["sizes"] == ["1x1", "64x64"]
    experts = load_onnx(folder, "fp32", threads=1).graph.expert_names
    assert set(measured["difference"]) == {"pooled", "gate", *experts}
    assert max(measured["difference"].values()) < 1e-3
    assert config["precisions"] == ["fp32", "int8"]
    assert sorted(file.name for file in folder.iterdir()) == [
        "config.json", "model.onnx", "model_int8.onnx", "tokenizer.json"]


def test_the_command(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = model_folder.parent / "out"
    assert command(monkeypatch, "--ckpt", model_folder, "--out", out) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"written: {out}"
    assert load_onnx(out, threads=1).precision == "fp32"
    assert command(monkeypatch, "--ckpt", model_folder, "--out", out) == 2
    assert "is there and not empty" in capsys.readouterr().err


@pytest.mark.parametrize("int8", [False, True])
def test_a_graph_that_is_too_far_off_is_not_left(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    int8: bool,
) -> None:
    strict = Tolerance(difference=1e-12, routing=1.0, answer=1.0)
    monkeypatch.setitem(TOLERANCES, "int8" if int8 else "fp32", strict)
    out = model_folder.parent / "out"
    options = ["--int8"] if int8 else []
    assert command(monkeypatch, "--ckpt", model_folder, "--out", out, *options) == 1
    error = capsys.readouterr().err
    precision = "int8" if int8 else "fp32"
    assert error.startswith(f"error: {precision} graph: pooled differs by ")
    assert error.endswith(": nothing was written\n")
    assert [file.name for file in model_folder.parent.iterdir()] == ["model"]


def test_what_the_gate_compares_with_is_kept(
    bundle: Bundle, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.arange(128, dtype=np.float32).reshape(2, 64)
    reference = Reference(centre_D=rows[0], strangers_XD=rows, threshold=0.5,
                          exemplars={"sentiment": rows, "qa": rows, "intent": rows})
    save_bundle(replace(bundle, calibration=Calibration(reference=reference)), model_folder)
    nothing = Parity(texts=0, sizes=("", ""), difference={}, routing=1.0, answer={})
    monkeypatch.setattr("moe.onnx.parity.check_parity", lambda *_: nothing)
    export(model_folder, model_folder.parent / "out")
    kept = load_onnx(model_folder.parent / "out", threads=1).calibration
    assert kept.reference is not None and kept.reference.threshold == 0.5
    expected = load_bundle(model_folder).calibration.arrays()
    assert set(kept.arrays()) == set(expected)
    assert all((kept.arrays()[name] == values).all() for name, values in expected.items())


def test_mistakes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="not empty"):
        export("best.ckpt", folder)
    with pytest.raises(InputError, match=r"no checkpoint at .*best\.ckpt"):
        export(tmp_path / "best.ckpt", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if name == "onnx" else 1)
    with pytest.raises(InputError, match=r"export needs onnx, which is not installed: .*export\]"):
        export(tmp_path / "best.ckpt", tmp_path / "out")
