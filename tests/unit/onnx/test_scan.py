"""Exports that take from other files, or lie about their arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from moe.onnx import bundle as onnx_bundle
from moe.onnx.scan import check_graph
from moe.types import InputError


def external(tensor: Any, place: str = "/etc/passwd") -> Any:
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    tensor.ClearField("raw_data")
    return tensor


def tensor(name: str = "w") -> Any:
    return numpy_helper.from_array(np.ones((2, 3), dtype=np.float32), name)


def graph(*nodes: Any, weights: Any = ()) -> Any:
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])
    return helper.make_graph(nodes, "g", [], [value], list(weights))


def constant(value: Any) -> Any:
    return helper.make_node("Constant", [], ["y"], value=value)


def nested(value: Any) -> Any:
    """A graph inside a node of a graph inside a node."""
    node = constant(value)
    for _ in range(2):
        inner = graph(node)
        node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    return graph(node)


def write(path: Path, made: Any, **more: Any) -> Path:
    path.write_bytes(helper.make_model(made, **more).SerializeToString())
    return path


def test_a_graph_in_one_file_passes(tmp_path: Path) -> None:
    check_graph(write(tmp_path / "a", graph(constant(tensor()), weights=[tensor()])))
    check_graph(write(tmp_path / "b", nested(tensor())))


@pytest.mark.parametrize("made", [
    graph(constant(tensor()), weights=[external(tensor())]),
    graph(constant(external(tensor()))),
    nested(external(tensor(), "../x")),
], ids=["weight", "constant", "nested"])
def test_a_tensor_from_another_file_is_refused(tmp_path: Path, made: Any) -> None:
    with pytest.raises(InputError, match="takes tensors from another file"):
        check_graph(write(tmp_path / "a", made))


def test_functions_and_sparse_weights_are_looked_into(tmp_path: Path) -> None:
    node = constant(external(tensor()))
    function = helper.make_function("d", "f", [], ["y"], [node], [])
    with pytest.raises(InputError, match="takes tensors from another file"):
        check_graph(write(tmp_path / "a", graph(), functions=[function]))
    made = graph()
    made.sparse_initializer.add().values.CopyFrom(external(tensor()))
    with pytest.raises(InputError, match="takes tensors from another file"):
        check_graph(write(tmp_path / "b", made))


@pytest.mark.parametrize(("data", "message"), [
    (b"", "empty"), (b"\x3a\xff\xff\xff\xff\x0fab", "a field of 4294967295 bytes where 2"),
    (b"\x3a", "index out of"), (b"\x0b", "a field of kind 3"),
    (b"\xff" * 11, "a number of more than 64 bits"),
])
def test_what_is_no_graph(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(InputError, match=message):
        check_graph(tmp_path / "a")


def field(number: int, content: bytes) -> bytes:
    """A field of Protocol Buffers that holds a message; lengths up to 2^14."""
    size = len(content)
    return bytes([number << 3 | 2, size & 0x7F | 0x80, size >> 7]) + content


@pytest.mark.parametrize(("levels", "refused"), [(19, False), (20, True)])
def test_graphs_nested_too_deep(tmp_path: Path, levels: int, refused: bool) -> None:
    """Each level is a graph (field 6 of an attribute), a node (1) and an attribute (5)."""
    made = b""
    for _ in range(levels):
        made = field(6, field(1, field(5, made)))
    # Below the model, at depth 0, are 3 + 3 * levels messages, one in the other.
    (tmp_path / "a").write_bytes(field(7, field(1, field(5, made))))
    if not refused:
        check_graph(tmp_path / "a")
        return
    with pytest.raises(InputError, match="nested deeper than 60"):
        check_graph(tmp_path / "a")


# --- reference.npz ----------------------------------------------------------------------------


def test_arrays_are_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((2, 3), dtype=np.float16))
    found = onnx_bundle._read_arrays(tmp_path / "a.npz")
    assert found["x"].shape == (2, 3)
    assert onnx_bundle._read_arrays(tmp_path / "b.npz") == {}


@pytest.mark.parametrize(("array", "message"), [
    (np.array([{"a": 1}], dtype=object), "claims"), (np.array([1, 2]), "claims"),
    (np.array([1.0, np.nan]), "x holds a NaN"), (np.array([np.inf]), "x holds a NaN"),
])
def test_arrays_of_something_else(tmp_path: Path, array: Any, message: str) -> None:
    np.savez(tmp_path / "a.npz", x=array)
    with pytest.raises(ValueError, match=message):
        onnx_bundle._read_arrays(tmp_path / "a.npz")


def test_packed_arrays_and_arrays_larger_than_their_bytes(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(1000))
    with pytest.raises(InputError, match="is packed"):
        onnx_bundle._read_arrays(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", x=np.zeros(1000))
    data = (tmp_path / "b.npz").read_bytes().replace(b"(1000,)", b"(9999,)")
    (tmp_path / "b.npz").write_bytes(data)
    with pytest.raises(ValueError, match=r"x.npy claims \(9999,\)"):
        onnx_bundle._read_arrays(tmp_path / "b.npz")
