"""8-bit weights: what is rounded, what is not, and by how much answers move."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from moe.onnx.bundle import FILES
from moe.onnx.graph import Parts
from moe.onnx.int8 import large_matrices, quantise, round_words


def test_answers_are_near_and_the_file_is_small(
    folder: Path, session: Any, run: Any, feeds: Any
) -> None:
    rows = feeds(16, 20)
    exact, rounded = (run(session(precision), rows) for precision in FILES)
    for name in exact:
        inside = exact[name] > -1e8
        error = np.abs(exact[name] - rounded[name])[inside].mean()
        assert 0 < error < 0.15 * exact[name][inside].std(), name
    assert (folder / FILES["int8"]).stat().st_size < (folder / FILES["fp32"]).stat().st_size


def test_matrices_of_encoder_and_trunks_are_rounded_and_nothing_else(parts: Parts) -> None:
    before = [weight.data_type for weight in parts.encoder.graph.initializer]
    rounded = quantise(parts)
    assert [w.data_type for w in parts.encoder.graph.initializer] == before  # not in place
    assert rounded.gate == parts.gate
    # Two layers, each with its projections, their output, and two of the feed-forward block; a
    # trunk has the same.
    assert len(kernels(rounded.encoder)) == 2 * 4
    for expert in rounded.experts:
        assert len(kernels(expert.model)) == 4, expert.name
        # The head decides.
        assert {"Gemm", "MatMul"} & {node.op_type for node in expert.model.graph.node}


def kernels(model: Any) -> list[str]:
    """Nodes that multiply by an 8-bit matrix."""
    names = {w.name for w in model.graph.initializer if w.data_type == TensorProto.INT8}
    return [node.name for node in model.graph.node
            if node.op_type in ("MatMulInteger", "QAttention") and node.input[1] in names]


def test_word_embeddings_by_hand(open_part: Callable[..., Any]) -> None:
    # The largest number of a word becomes 127: scales are 0.01 and 2, and [PAD] may be all 0.
    words = np.array([[0, 0], [1.27, -0.634], [254.0, 1.5]], dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["words", "input_ids"], ["states"])], "encoder",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("states", TensorProto.FLOAT, ["batch", "length", 2])],
        [numpy_helper.from_array(words, "words")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    round_words(model)
    onnx.checker.check_model(model)
    (states,) = open_part(model).run(None, {"input_ids": np.array([[1, 2], [0, 2]])})
    # -0.634 / 0.01 is -63.4, so -63; 1.5 / 2 is 0.75, so 1.
    expected = [[[1.27, -0.63], [254, 2]], [[0, 0], [254, 2]]]
    np.testing.assert_allclose(states, expected, rtol=1e-6)


@pytest.mark.parametrize(("smallest", "expected"), [(6, ["a", "b"]), (7, ["b"]), (9, [])])
def test_large_matrices(smallest: int, expected: list[str]) -> None:
    sizes = {"small": (2, 3), "large": (4, 2)}
    nodes = [
        helper.make_node("MatMul", ["x", "small"], ["y"], name="a"),
        helper.make_node("Attention", ["y", "large"], ["z"], name="b", domain="com.microsoft"),
        helper.make_node("Gemm", ["z", "large"], ["w"], name="c"),  # a head
        helper.make_node("MatMul", ["w", "x"], ["v"], name="d"),  # not by a weight
    ]
    weights = [numpy_helper.from_array(np.zeros(size, np.float32), name)
               for name, size in sizes.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", [], [], weights))
    assert large_matrices(model, smallest) == expected
