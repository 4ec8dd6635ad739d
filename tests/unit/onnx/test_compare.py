"""Metrics of an export beside the checkpoint's, on rows of the packaged samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe.checkpoint import save_bundle
from moe.onnx.compare import compare_exports, comparison_table
from moe.types import InputError


@pytest.fixture
def rows(tmp_path: Path) -> list[str]:
    (tmp_path / "sentiment.csv").write_text("text,label\n" + "good film,good\nvery bad,bad\n" * 4)
    (tmp_path / "intent.csv").write_text("text,label\n" + "an abbot led,pay\nwho was,oos\n" * 4)
    (tmp_path / "qa.jsonl").write_text(
        '{"question": "who led the monks", "context": "an abbot led the monks", "answers": '
        '[{"text": "an abbot", "answer_start": 0}]}\n'
    )
    names = {"sentiment": "sentiment.csv", "intent": "intent.csv", "qa": "qa.jsonl"}
    return [f"{task}={tmp_path / name}" for task, name in names.items()]


def test_float32_measures_what_torch_measures(
    bundle: Any, folder: Path, rows: list[str], tmp_path: Path
) -> None:
    cached = replace(bundle, config=replace(
        bundle.config, data=replace(bundle.config.data, cache=str(tmp_path / "cache"))))
    save_bundle(cached, tmp_path / "own")
    report = compare_exports(tmp_path / "own", folder, tests=rows, root=str(tmp_path))
    sides = report["sides"]
    assert list(sides) == ["torch", "fp32", "int8"]
    assert sides["fp32"]["same_route"] == sides["torch"]["same_route"] == 1.0
    assert 0 <= sides["int8"]["same_route"] <= 1
    for task, metrics in sides["torch"]["tasks"].items():
        assert metrics["n"] == {"sentiment": 8, "intent": 8, "qa": 1}[task]
        assert sides["fp32"]["tasks"][task] == pytest.approx(metrics, abs=1e-4), task
    lines = comparison_table(report).splitlines()
    assert lines[0].split() == ["torch", "fp32", "int8"]
    assert lines[1].split()[:2] == ["sentiment", "accuracy"]
    assert lines[-1].split()[-3:-1] == ["100.00", "100.00"]


def test_an_export_of_another_model(bundle: Any, folder: Path, tmp_path: Path) -> None:
    first, *others = bundle.model.tasks
    bundle.model.tasks = (replace(first, labels=("good", "bad")), *others)
    save_bundle(bundle, tmp_path / "own")
    with pytest.raises(InputError, match="give the checkpoint that it was made from"):
        compare_exports(tmp_path / "own", folder)
    with pytest.raises(InputError, match=r"no export, expected model\.onnx or model_int8\.onnx"):
        compare_exports(tmp_path / "own", tmp_path)
