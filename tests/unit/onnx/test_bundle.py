"""The exported folder: which graph is taken, and what is said of a damaged one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe.data.windows import PaddedWindows
from moe.onnx import bundle as onnx_bundle
from moe.onnx.bundle import load_onnx, multiplies_bytes
from moe.types import InputError


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def test_numbers_of_the_checkpoint(folder: Path, bundle: Any) -> None:
    loaded = load_onnx(folder, "fp32", threads=1)
    assert loaded.tasks == bundle.model.tasks
    assert loaded.calibration == bundle.calibration
    assert loaded.selection_bias_E.tolist() == [0, 3, 0, -1, 0]
    assert (loaded.max_length, loaded.stride, loaded.max_tokens) == (32, 4, 512)
    assert loaded.graph.expert_names == bundle.model.expert_names


@pytest.mark.parametrize("vnni", [True, False])
def test_8_bits_where_the_processor_has_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch, vnni: bool
) -> None:
    monkeypatch.setattr(onnx_bundle, "multiplies_bytes", lambda: vnni)
    assert load_onnx(folder, threads=1).precision == ("int8" if vnni else "fp32")
    assert load_onnx(folder, "int8", threads=1).precision == "int8"


@pytest.mark.parametrize(("flags", "expected"), [
    ("flags : sse2 avx2", False), ("flags : sse2 avx512_vnni", True), ("flags : sse2 avx_vnni",
    True), ("Features : asimd asimddp", True), (None, True)])
def test_which_processor_has_them(tmp_path: Path, flags: str | None, expected: bool) -> None:
    file = tmp_path / "cpuinfo"
    if flags is not None:
        file.write_text(flags)
    assert multiplies_bytes(file) is expected


def test_only_chosen_experts_answer(folder: Path, feeds: Any) -> None:
    graph = load_onnx(folder, "fp32", threads=1).graph
    values = feeds(3, 8)
    rows = PaddedWindows(input_ids=values["input_ids"],
                         attention_mask=values["attention_mask"] > 0,
                         context_mask=values["context_mask"] > 0)
    chosen = np.zeros((3, 5), dtype=bool)
    chosen[1, 2] = chosen[2, 3] = chosen[0, 4] = True
    said = graph.run_experts(graph.encode(rows), chosen)
    assert {expert: values.shape for expert, values in said.items()} == {
        2: (3, 8, 2), 3: (3, 4), 4: (3, 8, 5)}
    assert (said[3][:2] == 0).all() and (said[3][2] != 0).any()
    assert (said[4][1:] == 0).all() and (said[4][0] != 0).all()


def test_a_folder_of_something_else(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no export for backend 'onnx'"):
        load_onnx(tmp_path)
    (tmp_path / "config.json").write_text('{"format_version": 1}')
    with pytest.raises(InputError, match="a folder for backend 'torch'"):
        load_onnx(tmp_path)


def test_a_damaged_folder(changed: Callable[..., Path]) -> None:
    folder = changed()
    change(folder, precisions=["fp32"])
    with pytest.raises(InputError, match=r"no precision 'int8', it has \['fp32'\]"):
        load_onnx(folder, "int8")
    assert load_onnx(folder, threads=1).precision == "fp32"
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer.json: cannot be read \(No such file"):
        load_onnx(folder)
    (folder / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read as a graph"):
        load_onnx(folder)
    change(folder, format_version=7)
    with pytest.raises(InputError, match="export format version 7, this program reads 1"):
        load_onnx(folder)
