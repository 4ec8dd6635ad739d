"""The check itself: what it asks, what it compares, and that it sees a wrong graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from moe.onnx.bundle import FILES, OnnxGraph
from moe.onnx.graph import Parts, join
from moe.onnx.parity import (
    SIZES,
    TOLERANCES,
    Exported,
    Parity,
    ParityError,
    Tolerance,
    apart,
    ask_graph,
    ask_torch,
    check_parity,
    micro_batches,
    parity_text,
    token_rows,
    violations,
)
from moe.onnx.samples import TEXTS


@pytest.mark.parametrize(("count", "length"), [(1, 1), (64, 1), (1, 512), (7, 129), (64, 512)])
def test_sizes_up_to_64_by_512(bundle: Any, folder: Path, count: int, length: int) -> None:
    graph = OnnxGraph(folder / FILES["fp32"], threads=1)
    rows = token_rows(np.arange(4, 99, dtype=np.int32), count, length)
    ours, theirs = ask_torch(bundle.model, rows), ask_graph(graph, rows)
    assert set(ours) == {"pooled", "gate", *bundle.model.expert_names}
    for name, values in ours.items():
        assert apart(values, theirs[name]) < 1e-3, name


def test_what_is_asked(bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe.onnx.parity.SIZES", SIZES)  # as it is outside these tests
    batches = list(micro_batches(bundle))
    texts = [rows for rows, is_text in batches if is_text]
    assert sum(len(rows.input_ids) for rows in texts) == TEXTS >= 500
    assert {len(rows.input_ids) for rows in texts} >= {1, 2, 3, 8, 16, 32, 64}
    has_passage = np.concatenate([rows.context_mask.any(1) for rows in texts])
    assert has_passage.sum() == 128  # rows 1, 5, ..., 509: of four samples one has passages
    model = bundle.model
    model.tasks = model.tasks[:3]  # without a tagger there are three
    texts = [rows for rows, is_text in micro_batches(bundle) if is_text]
    assert sum(rows.context_mask.any(1).sum() for rows in texts) == 171
    others = [rows.input_ids.shape for rows, is_text in batches if not is_text]
    assert {(1, 1), (64, 1), (1, 512), (64, 512)} <= set(others)
    assert all(rows.attention_mask[:, 0].all() for rows, _ in batches)


def test_token_rows_by_hand() -> None:
    rows = token_rows(np.array([7, 8, 9], dtype=np.int32), 2, 4)
    assert rows.input_ids.tolist() == [[7, 8, 9, 7], [8, 9, 7, 8]]
    assert rows.attention_mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert rows.context_mask.tolist() == [[False, True, True, True], [False] * 4]


def test_apart_by_hand() -> None:
    inf = np.inf
    ours = np.array([[1.0, -inf], [2.0, 3.0]], dtype=np.float32)
    theirs = np.array([[1.5, -1e9], [2.0, 3.25]], dtype=np.float32)
    assert apart(ours, theirs) == 0.5
    assert apart(ours, ours.clip(min=-1e9)) == 0.0
    assert apart(ours, np.zeros_like(ours)) == inf  # a number where torch allows none
    assert np.isnan(apart(ours, np.array([[np.nan, -1e9], [2.0, 3.0]])))
    assert apart(np.array([np.nan]), np.array([1.0])) == inf


@pytest.mark.parametrize(("name", "part"), [("gate", "gate"), ("intent-0", "expert")])
def test_a_wrong_graph_is_seen(
    bundle: Any, parts: Parts, tmp_path: Path, name: str, part: str
) -> None:
    wrong = [expert.model for expert in parts.experts if expert.name == name]
    model = onnx.ModelProto()
    model.CopyFrom(wrong[0] if wrong else parts.gate)
    sizes = {"gate": [16], "expert": [4, 32]}  # a bias of the gate; the head's matrix
    weight = [w for w in model.graph.initializer if sorted(w.dims) == sizes[part]][-1]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + 0.01, weight.name))
    changed = (
        replace(parts, gate=model) if part == "gate" else
        replace(parts, experts=tuple(replace(e, model=model) if e.name == name else e
                                     for e in parts.experts))
    )
    onnx.save(join(changed), tmp_path / "wrong.onnx")
    with pytest.raises(ParityError, match=rf"^fp32 graph: {name} differs by 0\.\d+, allowed 0.001"):
        check_parity(bundle, tmp_path / "wrong.onnx", "fp32")


def test_violations_by_hand() -> None:
    parity = Parity(texts=200, sizes=("1x1", "1x2"), routing=0.99,
                    difference={"gate": 0.5, "a-0": float("nan"), "b-0": 0.1},
                    answer={"a-0": 0.9, "b-0": 0.9})
    allowed = Tolerance(difference=0.5, routing=0.995, answer=0.95)
    # Of ten texts one differs, which says nothing; of twenty two.
    assert violations(parity, {"a-0": 10, "b-0": 20}, allowed) == [
        "a-0 differs by nan, allowed 0.5",
        "same task for 99.00% of texts, needed 99.50%",
        "b-0 gives 90.00% of its texts the same answer, needed 95.00%",
    ]
    assert violations(replace(parity, difference={}, routing=0.995, answer={"b-0": 0.95}),
                      {"b-0": 20}, allowed) == []


def test_the_printed_table(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"x" * 2_500_000)
    parity = Parity(texts=512, sizes=("1x1", "64x512"), difference={"gate": 2e-6, "qa-0": 3.5e-5},
                    routing=1.0, answer={"qa-0": 0.995})
    rounding = {"kept": ["encoder/lin2"], "beside": ["encoder/lin2: 1 of 9 units"]}
    exported = Exported(parity={"fp32": parity}, rounding=rounding)
    assert parity_text(exported, tmp_path).splitlines()[1:] == [
        "fp32   gate                       2.00e-06      100.00%",
        "fp32   qa-0                       3.50e-05       99.50%",
        "fp32: 512 texts, 1x1 to 64x512 tokens, 2.5 MB",
        "int8: in 32 bits: encoder/lin2",
        "int8: encoder/lin2: 1 of 9 units",
        f"written: {tmp_path}",
    ]


def test_rounding_to_8_bits_is_judged_by_decisions() -> None:
    assert TOLERANCES["fp32"].difference == 1e-3
    assert TOLERANCES["int8"].routing == 0.995
