"""One ONNX graph from separately exported parts: encoder, gate, and every expert.

An expert runs inside an `If` on the rows that chose it, so that experts without rows cost nothing.
Exported in one piece it would run on all rows or, traced on rows that do not choose it, vanish.

Dimensions: B windows, L tokens, D encoder width, E experts, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper
from onnx.compose import add_prefix_graph

INTERFACE = """Inputs: input_ids, attention_mask, context_mask (batch, length) int64; context_mask
is 1 at the tokens of the passage. With these alone every expert answers every row.
chosen (batch or 1, experts) bool: which experts run on which rows; all by default.
known_hidden (batch, length, width): `hidden` of an earlier run on the same rows, which then needs
no encoder; empty by default.
Outputs: gate_logits (batch, experts) of each row alone: average them over the windows of a request.
pooled (batch, width or twice that): what the gate read. hidden (batch, length, width), the states
of other layers behind them if something that was added reads these. By name of the expert its
logits: (batch, classes); of a tagger (batch, length, tags); or (batch, length, 2) for start and
end, -1e9 outside the passage and at position 0 the score of no answer. 0 in rows that did not
choose it."""


@dataclass(frozen=True, kw_only=True)
class ExpertPart:
    """An exported expert.

    Attributes:
        name: Its name, and that of its output.
        model: From `hidden`, `attention`, `context` of its rows to logits.
    """

    name: str
    model: ModelProto

    @property
    def per_token(self) -> bool:
        """Whether the logits are (N, L, C) and not (N, C)."""
        return len(self._shape) == 3

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self._shape[-1].dim_value)

    @property
    def _shape(self) -> Any:
        return self.model.graph.output[0].type.tensor_type.shape.dim


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a graph is joined from.

    Attributes:
        encoder: From `input_ids`, `attention` to the token states.
        gate: From `hidden`, `attention`, `context` to gate logits and what the gate read.
        experts: In the gate's order.
        dim: Width of the token states: D for each layer that is read.
        layer_dim: D.
        pooled_dim: Width of what the gate reads.
    """

    encoder: ModelProto
    gate: ModelProto
    experts: tuple[ExpertPart, ...]
    dim: int
    layer_dim: int
    pooled_dim: int


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Nodes with the constants that they read."""

    nodes: list[NodeProto]
    constants: list[TensorProto]


def join(parts: Parts) -> ModelProto:
    """The graph that `INTERFACE` describes, checked."""
    inputs, defaults = _inputs(parts.dim, len(parts.experts))
    pieces = [_shared(parts.experts), _encoder(parts.encoder), _gate(parts.gate)]
    pieces += [_expert(part, column) for column, part in enumerate(parts.experts)]
    graph = helper.make_graph(
        [node for piece in pieces for node in piece.nodes],
        "mixture",
        inputs,
        _outputs(parts),
        [*defaults, *(constant for piece in pieces for constant in piece.constants)],
        doc_string=INTERFACE,
    )
    models = [parts.encoder, parts.gate, *(part.model for part in parts.experts)]
    joined = helper.make_model(graph, opset_imports=_opsets(models), producer_name="moe-nlp")
    joined.ir_version = max(model.ir_version for model in models)
    onnx.checker.check_model(joined)
    return joined


def _inputs(dim: int, num_experts: int) -> tuple[list[ValueInfoProto], list[TensorProto]]:
    """The inputs, and what the optional ones are if they are not given."""
    value = helper.make_tensor_value_info
    tokens = ("input_ids", "attention_mask", "context_mask")
    inputs = [value(name, TensorProto.INT64, ["batch", "length"]) for name in tokens]
    inputs.append(value("chosen", TensorProto.BOOL, ["chosen_rows", num_experts]))
    inputs.append(value("known_hidden", TensorProto.FLOAT, ["known_rows", "known_length", dim]))
    defaults = [
        helper.make_tensor("chosen", TensorProto.BOOL, [1, num_experts], [True] * num_experts),
        helper.make_tensor("known_hidden", TensorProto.FLOAT, [0, 0, dim], []),
    ]
    return inputs, defaults


def _outputs(parts: Parts) -> list[ValueInfoProto]:
    def value(name: str, *shape: str | int) -> ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])

    return [
        value("gate_logits", len(parts.experts)),
        value("pooled", parts.pooled_dim),
        value("hidden", "length", parts.dim),
        *(
            value(part.name, *(["length"] if part.per_token else []), part.num_classes)
            for part in parts.experts
        ),
    ]


def _opsets(models: Sequence[ModelProto]) -> list[onnx.OperatorSetIdProto]:
    """One version of each set of operators; the parts agree on it."""
    versions = {(entry.domain, entry.version) for model in models for entry in model.opset_import}
    assert len({domain for domain, _ in versions}) == len(versions), versions
    return [helper.make_opsetid(domain, version) for domain, version in sorted(versions)]


def _shared(experts: Sequence[ExpertPart]) -> _Piece:
    """Masks, sizes, and which experts run."""
    nodes = [
        _node("Cast", ["attention_mask"], "attention", to=TensorProto.BOOL),
        _node("Cast", ["context_mask"], "context", to=TensorProto.BOOL),
        _node("Shape", ["input_ids"], "size"),
        _node("Shape", ["input_ids"], "rows", start=0, end=1),
        _node("Cast", ["chosen"], "chosen/numbers", to=TensorProto.INT32),
        _node("ReduceMax", ["chosen/numbers", "zero"], "chosen/most", keepdims=0),
        _node("Cast", ["chosen/most"], "chosen/any", to=TensorProto.BOOL),
        helper.make_node(
            "Split",
            ["chosen/any"],
            [f"{part.name}/any" for part in experts],
            name="chosen/Split",
            axis=0,
            num_outputs=len(experts),
        ),
    ]
    return _Piece(
        nodes=nodes, constants=[_ints("minus_one", [-1]), _ints("zero", [0]), _ints("one", [1])]
    )


def _encoder(encoder: ModelProto) -> _Piece:
    """`hidden`: the encoder's, or the known one where there is one."""
    inside = _placed(encoder, "encoder/")
    known = _node("Identity", ["known_hidden"], "known/hidden")
    nodes = [
        _node("Shape", ["known_hidden"], "known/rows", start=0, end=1),
        _node("Equal", ["known/rows", "zero"], "known/none"),
        _node(
            "If",
            ["known/none"],
            "hidden",
            then_branch=_branch("encode", inside.node, inside.output[0].name, inside.initializer),
            else_branch=_branch("known", [known], "known/hidden"),
        ),
    ]
    return _Piece(nodes=nodes, constants=[])


def _gate(gate: ModelProto) -> _Piece:
    """`gate_logits` and `pooled`."""
    inside = _placed(gate, "gate/")
    named = zip(inside.output, ("gate_logits", "pooled"), strict=True)
    nodes = [*inside.node, *(_node("Identity", [inner.name], outer) for inner, outer in named)]
    return _Piece(nodes=nodes, constants=list(inside.initializer))


def _expert(part: ExpertPart, column: int) -> _Piece:
    """The expert's logits on the rows that chose it, 0 in the others.

    All that is for one expert is in its branches: what runs whoever is chosen is paid by every
    short request, once for each expert.
    """
    own = f"{part.name}/"
    inner = own + "inner/"
    inside = _placed(part.model, inner, own_inputs=True)
    rows, sizes = own + "rows", "size" if part.per_token else "rows"
    constants = [_scalar(own + "column", column), _ints(own + "classes", [part.num_classes])]
    used = {name for node in inside.node for name in node.input}
    tensors = [name for name in ("hidden", "attention", "context") if inner + name in used]
    nodes = [
        _node("Gather", ["chosen", own + "column"], own + "chosen", axis=1),
        _node("Expand", [own + "chosen", "rows"], own + "chosen_all"),
        _node("NonZero", [own + "chosen_all"], own + "found"),
        _node("Reshape", [own + "found", "minus_one"], rows),
        *(_node("Gather", [name, rows], inner + name) for name in tensors),
        *inside.node,
        _node("Concat", [sizes, own + "classes"], own + "shape", axis=0),
        _node("ConstantOfShape", [own + "shape"], own + "empty"),
        _node("Unsqueeze", [rows, "one"], own + "places"),
        _node("ScatterND", [own + "empty", own + "places", inside.output[0].name], own + "filled"),
    ]
    idle = [
        _node("Concat", [sizes, own + "classes"], own + "idle_shape", axis=0),
        _node("ConstantOfShape", [own + "idle_shape"], own + "idle"),
    ]
    choice = _node(
        "If",
        [own + "any"],
        part.name,
        then_branch=_branch(own + "run", nodes, own + "filled", inside.initializer),
        else_branch=_branch(own + "wait", idle, own + "idle"),
    )
    return _Piece(nodes=[choice], constants=constants)


def _placed(model: ModelProto, prefix: str, *, own_inputs: bool = False) -> GraphProto:
    """The inside of a part with a prefix before its names, to stand beside others.

    Args:
        model: The part.
        prefix: Of its names.
        own_inputs: Whether its inputs get the prefix, too; else it reads those of the whole graph.
    """
    assert not model.functions
    graph = add_prefix_graph(model.graph, prefix, rename_inputs=own_inputs)
    for node in graph.node:
        del node.metadata_props[:]  # stack traces of the export
    return graph


def _branch(
    name: str, nodes: Sequence[NodeProto], output: str, constants: Sequence[TensorProto] = ()
) -> GraphProto:
    # The runtime finds the shape.
    value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    return helper.make_graph(nodes, name, [], [value], constants)


def _node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, list(inputs), [output], name=f"{output}/{kind}", **attributes)


def _ints(name: str, values: Sequence[int]) -> TensorProto:
    return helper.make_tensor(name, TensorProto.INT64, [len(values)], list(values))


def _scalar(name: str, value: int) -> TensorProto:
    return helper.make_tensor(name, TensorProto.INT64, [], [value])
