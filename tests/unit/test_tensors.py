"""Names, shapes, kinds and values of saved tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from moe.tensors import first_non_finite, mismatch

EXPECTED = {"a": torch.zeros(2, 3), "n": torch.zeros(1, dtype=torch.long)}


@pytest.mark.parametrize(("saved", "message"), [
    ({}, None), ({"a": torch.zeros(2, 3, dtype=torch.bfloat16)}, None),
    ({"a": torch.zeros(3, 2)}, "a has shape (3, 2), expected (2, 3)"),
    ({"a": torch.zeros(2, 3).long()}, "a is torch.int64, expected torch.float32"),
    ({"n": torch.zeros(1)}, "n is torch.float32, expected torch.int64"),
    ({"a": torch.zeros(2, 3, dtype=torch.complex64)}, "a is torch.complex64, expected"),
    ({"a": "x"}, "a is a str, not a tensor"),
    ({"a": torch.eye(3)[:2].to_sparse()}, "a has layout torch.sparse_coo"),
    ({"b": 1, "c": 2}, "unknown 'b' and 1 more"),
])
def test_the_first_difference(saved: dict[str, Any], message: str | None) -> None:
    found = mismatch(EXPECTED, {**EXPECTED, **saved})
    assert found is None if message is None else found is not None and found.startswith(message)


def test_what_is_missing() -> None:
    assert mismatch(EXPECTED, {}) == "missing 'a' and 1 more"
    assert mismatch(EXPECTED, {"n": EXPECTED["n"]}) == "missing 'a'"


def test_no_value_is_needed() -> None:
    meta = {name: tensor.to("meta") for name, tensor in EXPECTED.items()}
    assert mismatch(meta, meta) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_the_place_of_a_number_that_is_none(value: float) -> None:
    bad = torch.tensor([0.0, value])
    assert first_non_finite({"a": [torch.ones(2), {"b": bad}], "c": 3}) == "a[1].b"
    assert first_non_finite({"a": torch.ones(2), "n": torch.tensor([1])}) is None
