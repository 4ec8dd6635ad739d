"""Both rewrites keep the function in 32 bits and take outliers out of what is rounded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from moe.onnx.int8 import round_products
from moe.onnx.outliers import OUTLIER, level, take_out
from moe.onnx.products import peaks, products, weights

DIM, UNITS, SMALLEST = 4, 400, 1600


@pytest.fixture
def block() -> ModelProto:
    """A layer norm and a feed-forward block; channel 0 and unit 7 hold large numbers."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=(DIM, UNITS)) / 10
    first[:, 7] *= 100
    constants = {
        "gain": [30, 1, 1, 1], "shift": [0, 0, 0, 0],
        "inner.weight": first, "inner.bias": rng.normal(size=UNITS) / 10,
        "outer.weight": rng.normal(size=(UNITS, DIM)) / 10, "outer.bias": [1, 2, 3, 4],
    }
    node = helper.make_node
    graph = helper.make_graph(
        [node("LayerNormalization", ["x", "gain", "shift"], ["normed"], axis=-1),
         node("MatMul", ["normed", "inner.weight"], ["p"]), node("Add", ["p", "inner.bias"], ["s"]),
         node("Gelu", ["s"], ["units"]),
         node("MatMul", ["units", "outer.weight"], ["q"]), node("Add", ["q", "outer.bias"], ["t"]),
         node("Add", ["t", "normed"], ["y"])],
        "block",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "tokens", DIM])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(v, dtype=np.float32), n) for n, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


@pytest.fixture
def x() -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).normal(size=(5, 6, DIM)).astype(np.float32)}


def test_peaks_by_hand(block: ModelProto, open_part: Callable[..., Any], x: Any) -> None:
    found = peaks(block, ["normed", "x", "normed"], [x, {"x": 2 * x["x"]}])
    np.testing.assert_allclose(found["x"], 2 * np.abs(x["x"]).max((0, 1)))
    # A layer norm does not see the factor 2: a number is at most the gain times sqrt(3).
    assert 30 < found["normed"][0] <= 30 * 3**0.5 + 1e-4
    assert found["normed"][1] <= 3**0.5 + 1e-4


def test_levelled_channels_are_alike_and_nothing_else_changes(
    block: ModelProto, open_part: Callable[..., Any], x: Any
) -> None:
    (before,) = open_part(block).run(None, x)
    largest = peaks(block, ["normed", "units"], [x])
    level(block, largest, SMALLEST)
    np.testing.assert_allclose(open_part(block).run(None, x)[0], before, rtol=1e-4, atol=1e-4)
    inner, outer = products(block, SMALLEST)
    assert (inner.input, outer.input) == ("normed/level", "units")  # units are not for `level`
    after = peaks(block, [inner.input], [x])[inner.input]
    assert after.max() / after.min() < 0.5 * (largest["normed"].max() / largest["normed"].min())
    # The residual path still reads the layer norm.
    assert list(block.graph.node[-1].input) == ["t", "normed"]


def test_the_scale_is_that_of_the_paper(block: ModelProto, x: Any) -> None:
    before = weights(block)["inner.weight"]
    largest = {"normed": np.array([16.0, 1, 1, 1], dtype=np.float32)}
    level(block, {**largest, "units": np.ones(UNITS, np.float32)}, SMALLEST)
    # s = 16^0.65 / (max |W|)^0.35
    expected = 16**0.65 / np.abs(before[0]).max() ** 0.35
    np.testing.assert_allclose(weights(block)["inner.weight"][0], before[0] * expected, rtol=1e-5)
    np.testing.assert_allclose(weights(block)["normed/shrink"][0], 1 / expected, rtol=1e-5)


def test_an_outlier_is_taken_out_and_the_sum_is_the_same(
    block: ModelProto, open_part: Callable[..., Any], x: Any
) -> None:
    (before,) = open_part(block).run(None, x)
    largest = peaks(block, ["units", "normed"], [x])
    assert take_out(block, largest, SMALLEST) == ["outer.bias: 1 of 400 units beside the others"]
    np.testing.assert_allclose(open_part(block).run(None, x)[0], before, rtol=1e-4, atol=1e-3)
    made = weights(block)
    assert made["outer.bias/few/in"].shape == (DIM, 1)
    assert made["outer.bias/few/out"].shape == (1, DIM)
    assert not made["inner.weight"][:, 7].any() and not made["outer.weight"][7].any()
    left = peaks(block, ["units"], [x])["units"]
    assert left[7] == 0 and largest["units"][7] > OUTLIER * left.max()


def test_without_outliers_nothing_is_taken(block: ModelProto) -> None:
    before = block.SerializeToString()
    even = {"normed": np.ones(DIM, np.float32), "units": np.ones(UNITS, np.float32)}
    assert take_out(block, even, SMALLEST) == []
    before_block = ModelProto.FromString(before)
    assert list(block.graph.node) == list(before_block.graph.node)


def test_rounding_costs_less_without_outliers(
    block: ModelProto, open_part: Callable[..., Any], x: Any
) -> None:
    (exact,) = open_part(block).run(None, x)
    plain = copy.deepcopy(block)
    largest = peaks(block, ["units", "normed"], [x])
    take_out(block, largest, SMALLEST)
    level(block, largest, SMALLEST)
    errors = []
    for part in (plain, block):
        round_products(part, SMALLEST)
        errors.append(np.abs(open_part(part).run(None, x)[0] - exact).mean())
    assert errors[1] < 0.5 * errors[0], errors
