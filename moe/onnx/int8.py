"""Parts with 8-bit weights: the large matrices of encoder and trunks, and the word embeddings.

Gate, heads, norms and positions are small and decide: they stay in float32.

Dimensions: V words, D encoder width, K inputs of a matrix, N its outputs.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from moe.onnx.products import RUNTIME, Floats32, node, products, set_nodes, set_weights, weights


def round_words(encoder: ModelProto) -> None:
    """Makes the word embeddings 8-bit integers with one scale per word: a fourth of the size.

    Per word, because one scale for all would round the short vectors to nothing.
    """
    graph = encoder.graph
    nodes = list(graph.node)
    (place,) = [
        number
        for number, node in enumerate(nodes)
        if node.op_type == "Gather" and node.input[1] == "input_ids"
    ]
    words, states = nodes[place].input[0], nodes[place].output[0]
    (table,) = [weight for weight in graph.initializer if weight.name == words]
    words_VD = numpy_helper.to_array(table)
    scale_V1 = np.maximum(np.abs(words_VD).max(1, keepdims=True) / 127, 1e-12)
    table.CopyFrom(numpy_helper.from_array(np.rint(words_VD / scale_V1).astype(np.int8), words))
    scales = f"{words}/scale"
    graph.initializer.append(numpy_helper.from_array(scale_V1.astype(np.float32), scales))
    names = [f"{words}/{name}" for name in ("rounded", "float", "factor")]
    nodes[place : place + 1] = [
        helper.make_node("Gather", [words, "input_ids"], [names[0]], name=names[0]),
        helper.make_node("Cast", [names[0]], [names[1]], name=names[1], to=TensorProto.FLOAT),
        helper.make_node("Gather", [scales, "input_ids"], [names[2]], name=names[2]),
        helper.make_node("Mul", names[1:], [states], name=f"{words}/states"),
    ]
    del graph.node[:]
    graph.node.extend(nodes)


def round_columns(matrix_KN: Floats32) -> tuple[NDArray[np.int8], Floats32]:
    """The matrix in 8 bits, and the scale (N,) of its columns: `matrix = rounded * scale`."""
    scale_N = np.maximum(np.abs(matrix_KN).max(0) / 127, 1e-12).astype(np.float32)
    return np.rint(matrix_KN / scale_N).astype(np.int8), scale_N


def round_products(part: ModelProto, smallest: int, kept: Collection[str] = ()) -> None:
    """Multiplies by large matrices in 8 bits; what goes into them is rounded as it comes.

    Args:
        part: Is changed.
        smallest: Numbers of the smallest matrix to change.
        kept: Names of products that stay in 32 bits.
    """
    chosen = {p.product: p for p in products(part, smallest) if p.name not in kept}
    sums = {product.output for product in chosen.values()}
    matrices = weights(part)
    changed: dict[str, NDArray[np.generic]] = {}
    rounded: set[str] = set()
    nodes: list[NodeProto] = []
    for old in part.graph.node:
        product = chosen.get(old.output[0])
        if product is None:
            if old.output[0] not in sums:
                nodes.append(old)
            continue
        x, w = product.input, product.weight
        if x not in rounded:
            rounded.add(x)
            nodes.append(node("DynamicQuantizeLinear", [x], [f"{x}/8", f"{x}/scale", f"{x}/zero"]))
        changed[w], changed[f"{w}/scale"] = round_columns(matrices[w])
        inputs = [f"{x}/8", w, f"{x}/scale", f"{w}/scale", f"{x}/zero", "", product.bias]
        nodes.append(node("MatMulIntegerToFloat", inputs, [product.output], domain=RUNTIME))
    set_weights(part, changed)
    set_nodes(part, nodes)
