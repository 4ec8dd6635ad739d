"""The large matrices of an exported part, what is multiplied by them, and new nodes among the old.

Dimensions: K inputs of a matrix, N its outputs.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from moe.onnx.bundle import SLOW_FUSIONS

Floats32 = NDArray[np.float32]
Feeds = Mapping[str, NDArray[Any]]
RUNTIME = "com.microsoft"  # operators of ONNX Runtime's own


@dataclass(frozen=True, kw_only=True)
class Product:
    """Inputs times a large matrix, plus a bias.

    Attributes:
        name: Of the layer in the model, such as `transformer.layer.0.ffn.lin2`.
        input: Name of the tensor that is multiplied.
        maker: Kind of the operator that made it; empty for an input of the part.
        weight: Name of the matrix (K, N).
        bias: Name of what is added.
        product: Output of the multiplication.
        output: Output of the addition.
    """

    name: str
    input: str
    maker: str
    weight: str
    bias: str
    product: str
    output: str


def products(part: ModelProto, smallest: int) -> list[Product]:
    """The products of a part by matrices of at least `smallest` numbers, in its order."""
    sizes = {weight.name: int(np.prod(weight.dims)) for weight in part.graph.initializer}
    makers = {output: node.op_type for node in part.graph.node for output in node.output}
    added = {node.input[0]: node for node in part.graph.node if node.op_type == "Add"}
    found = []
    for node in part.graph.node:
        if node.op_type == "MatMul" and sizes.get(node.input[1], 0) >= smallest:
            bias = added[node.output[0]]
            assert bias.input[1] in sizes, bias.input
            found.append(
                Product(
                    name=_layer(node) or bias.input[1],
                    input=node.input[0],
                    maker=makers.get(node.input[0], ""),
                    weight=node.input[1],
                    bias=bias.input[1],
                    product=node.output[0],
                    output=bias.output[0],
                )
            )
    return found


def _layer(node: NodeProto) -> str:
    """The module that a node was exported from; names of constants are shared by equal ones."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            return str(ast.literal_eval(entry.value)[-2])
    return ""


def weights(part: ModelProto) -> dict[str, NDArray[Any]]:
    """All constants of a part by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in part.graph.initializer}


def set_weights(part: ModelProto, values: Mapping[str, NDArray[Any]]) -> None:
    """Replaces constants of a part, or adds them."""
    kept = [tensor for tensor in part.graph.initializer if tensor.name not in values]
    new = [numpy_helper.from_array(np.ascontiguousarray(v), name) for name, v in values.items()]
    del part.graph.initializer[:]
    part.graph.initializer.extend([*kept, *new])


def set_nodes(part: ModelProto, nodes: Sequence[NodeProto]) -> None:
    """Replaces the nodes of a part, and forgets what was known of the tensors between them."""
    nodes = list(nodes)
    del part.graph.node[:]
    part.graph.node.extend(nodes)
    del part.graph.value_info[:]
    if all(entry.domain != RUNTIME for entry in part.opset_import):
        part.opset_import.append(helper.make_opsetid(RUNTIME, 1))


def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> NodeProto:
    """A node that is named after what it makes."""
    return helper.make_node(kind, inputs, outputs, name=f"{outputs[0]}/{kind}", **attributes)


def session(part: ModelProto, threads: int = 1) -> onnxruntime.InferenceSession:
    """Runs a part."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        part.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=SLOW_FUSIONS,
    )


def peaks(part: ModelProto, names: Sequence[str], samples: Sequence[Feeds]) -> dict[str, Floats32]:
    """The largest absolute value (K,) of every channel of some tensors of a part.

    Args:
        part: In 32 bits.
        names: Of tensors (rows, tokens, K).
        samples: What the part is fed with, one entry per micro-batch.
    """
    fed = {value.name for value in part.graph.input}
    made = [name for name in dict.fromkeys(names) if name not in fed]
    watched = ModelProto()
    watched.CopyFrom(part)
    for name in made:
        watched.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    runner = session(watched)
    known = {value.name for value in runner.get_inputs()}
    seen: dict[str, list[Floats32]] = {name: [] for name in names}
    for feeds in samples:
        own = {name: value for name, value in feeds.items() if name in known}
        values = {**feeds, **dict(zip(made, runner.run(made, own), strict=True))} if made else feeds
        for name, found in seen.items():
            found.append(np.abs(values[name]).reshape(-1, values[name].shape[-1]).max(0))
    return {name: np.max(found, axis=0) for name, found in seen.items()}
