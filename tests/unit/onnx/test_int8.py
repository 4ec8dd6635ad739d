"""8-bit weights: what is rounded, what is not, and by how much answers move."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from moe.onnx.bundle import FILES
from moe.onnx.graph import Parts
from moe.onnx.int8 import round_columns, round_products, round_words
from moe.onnx.products import products, weights


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
    # Two layers, each with its projections as one, their output, and two of the feed-forward
    # block; a trunk has the same, and a query of its own if the first token alone is read.
    first = {"sentiment-0": 1, "sentiment-1": 1, "qa-0": 0, "intent-0": 1, "slots-0": 0}
    trunks = [(expert.model, 4 + first[expert.name]) for expert in parts.experts]
    for part, count in [(parts.encoder, 4 * 2), *trunks]:
        own = copy.deepcopy(part)
        round_products(own, parts.dim**2)
        assert len(kernels(own)) == count
        assert [n.op_type for n in own.graph.node].count("DynamicQuantizeLinear") == count
        # A head decides.
        assert part is parts.encoder or {"Gemm", "MatMul"} & {n.op_type for n in own.graph.node}


def test_what_is_kept_stays_as_it_was(parts: Parts) -> None:
    kept = "transformer.layer.1.ffn.lin2"
    own = copy.deepcopy(parts.encoder)
    round_products(own, parts.dim**2, {kept})
    assert len(kernels(own)) == 4 * 2 - 1
    (left,) = products(own, parts.dim**2)
    assert left.name == kept
    np.testing.assert_array_equal(weights(own)[left.weight], weights(parts.encoder)[left.weight])


def kernels(model: Any) -> list[str]:
    """Nodes that multiply by an 8-bit matrix."""
    names = {w.name for w in model.graph.initializer if w.data_type == TensorProto.INT8}
    return [node.name for node in model.graph.node
            if node.op_type == "MatMulIntegerToFloat" and node.input[1] in names]


def test_columns_by_hand() -> None:
    # Largest numbers 2.54 and 0.127: scales 0.02 and 0.001; -1.2 / 0.02 = -60. A column of zeros
    # has no scale to speak of.
    matrix = np.array([[2.54, 0.127, 0], [-1.2, 0.0506, 0]], dtype=np.float32)
    rounded, scale = round_columns(matrix)
    np.testing.assert_array_equal(rounded, [[127, 127, 0], [-60, 51, 0]])
    np.testing.assert_allclose(scale, [0.02, 0.001, 1e-12], rtol=1e-6)


def test_a_product_in_8_bits_by_hand(open_part: Callable[..., Any]) -> None:
    # x lies in [-1, 1.55]: one step is 2.55 / 255 = 0.01, so x is exact. W's columns have scales
    # 0.01 and 0.02. y = (-1 * 1.27 + 1.55 * 0.5, -1 * 2.54 + 1.55 * 1) + b
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])],
        "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 2])],
        [numpy_helper.from_array(np.array([[1.27, 2.54], [0.5, 1]], np.float32), "w"),
         numpy_helper.from_array(np.array([0.1, 0.2], np.float32), "b")],
    )
    part = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    round_products(part, 4)
    (y,) = open_part(part).run(None, {"x": np.array([[-1, 1.55]], np.float32)})
    np.testing.assert_allclose(y, [[-0.395, -0.79]], atol=1e-6)


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
