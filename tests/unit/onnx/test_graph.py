"""The joined graph: every expert beside torch, experts without rows, a second run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from moe.encoder import encode
from moe.onnx.graph import INTERFACE, Parts, join


@pytest.mark.parametrize(("count", "length"), [(1, 1), (1, 2), (2, 8), (5, 33), (64, 3), (1, 64)])
def test_every_expert_equals_torch(
    bundle: Any, session: Any, run: Any, feeds: Any, count: int, length: int
) -> None:
    rows = feeds(count, length)
    ids = torch.from_numpy(rows["input_ids"])
    attention = torch.from_numpy(rows["attention_mask"] > 0)
    context = torch.from_numpy(rows["context_mask"] > 0)
    with torch.inference_mode():
        hidden = encode(bundle.model.encoder, ids, attention)
        expected = {n: e(hidden, attention, context) for n, e in bundle.model.experts.items()}
    said = run(session(), rows)
    assert list(said) == ["gate_logits", "pooled", "hidden", *expected]
    for name, logits in expected.items():
        # -1e9 stands for -inf: no softmax can tell them apart.
        assert said[name].shape == logits.shape
        np.testing.assert_allclose(said[name], logits.clamp(min=-1e9), atol=1e-4, err_msg=name)
        assert np.isfinite(said[name]).all()


def test_an_expert_answers_the_rows_that_chose_it(session: Any, run: Any, feeds: Any) -> None:
    graph, rows = session(), feeds(4, 9)
    everything = run(graph, rows)
    chosen = np.zeros((4, 5), dtype=bool)
    chosen[[0, 3], 0] = chosen[1, 2] = chosen[:, 3] = chosen[[1, 2], 4] = True
    said = run(graph, {**rows, "chosen": chosen})
    for column, name in enumerate(list(said)[3:]):
        ran = chosen[:, column]
        np.testing.assert_allclose(said[name][ran], everything[name][ran], atol=1e-5)
        assert (said[name][~ran] == 0).all()


def test_a_second_run_needs_no_encoder(session: Any, run: Any, feeds: Any) -> None:
    graph, rows = session(), feeds(3, 6)
    first = run(graph, rows)
    others = {**rows, "input_ids": rows["input_ids"] + 1}
    again = run(graph, {**others, "known_hidden": first["hidden"]})
    for name, values in first.items():
        np.testing.assert_allclose(again[name], values, atol=1e-5, err_msg=name)
    assert not np.allclose(first["hidden"], run(graph, others)["hidden"], atol=1e-2)


def test_a_row_does_not_depend_on_its_neighbours(session: Any, run: Any, feeds: Any) -> None:
    graph, rows = session(), feeds(8, 20)
    together = run(graph, rows)
    for row in (0, 7):
        alone = run(graph, {name: values[row : row + 1] for name, values in rows.items()})
        for name, values in alone.items():
            np.testing.assert_allclose(values[0], together[name][row], atol=1e-5, err_msg=name)


def test_the_file_says_how_it_is_asked(parts: Parts, open_part: Callable[..., Any]) -> None:
    model = join(parts)
    assert model.graph.doc_string == INTERFACE
    sizes = {value.name: value.shape for value in open_part(model).get_outputs()}
    assert sizes["gate_logits"] == ["batch", 5]
    assert sizes["pooled"] == ["batch", 64]  # two means of 32 numbers
    assert sizes["qa-0"] == ["batch", "length", 2]
    assert sizes["intent-0"] == ["batch", 4]  # three labels, and out of scope
    assert sizes["slots-0"] == ["batch", "length", 5]
    # Nothing of the machine that wrote it.
    assert not any(node.metadata_props for node in model.graph.node)


def test_parts_of_two_versions_are_not_joined(parts: Parts) -> None:
    old = onnx.ModelProto()
    old.CopyFrom(parts.gate)
    old.opset_import[0].version -= 1
    with pytest.raises(AssertionError):
        join(replace(parts, gate=old))
