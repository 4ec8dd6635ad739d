"""Parts with 8-bit weights: the large matrices of encoder and trunks, and the word embeddings.

Gate, heads, norms and positions are small and decide: they stay in float32.

Dimensions: V words, D encoder width.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from moe.onnx.graph import Parts


def quantise(parts: Parts) -> Parts:
    """The parts with 8-bit weights; inputs of a matrix are rounded as they come."""
    parts, smallest = copy.deepcopy(parts), parts.dim**2
    round_words(parts.encoder)
    return replace(
        parts,
        encoder=round_matrices(parts.encoder, smallest),
        experts=tuple(
            replace(expert, model=round_matrices(expert.model, smallest))
            for expert in parts.experts
        ),
    )


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


def round_matrices(model: ModelProto, smallest: int) -> ModelProto:
    """The part with its large matrices in 8 bits, one scale per column.

    Args:
        model: An exported part, which is changed.
        smallest: Numbers of the smallest matrix to change.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    names = large_matrices(model, smallest)
    if not names:
        return model
    del model.graph.value_info[:]  # the old types would contradict the new ones
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, before)
        quantize_dynamic(
            before,
            after,
            op_types_to_quantize=["Attention", "MatMul"],
            nodes_to_quantize=names,
            per_channel=True,
            weight_type=QuantType.QInt8,
            # Shape inference does not know the runtime's own operators.
            extra_options={"DefaultTensorType": TensorProto.FLOAT},
        )
        return onnx.load(after)


def large_matrices(model: ModelProto, smallest: int) -> list[str]:
    """Names of the nodes that multiply by a weight of at least `smallest` numbers."""
    sizes = {weight.name: int(np.prod(weight.dims)) for weight in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type in ("Attention", "MatMul") and sizes.get(node.input[1], 0) >= smallest
    ]
