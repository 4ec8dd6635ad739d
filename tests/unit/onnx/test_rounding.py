"""What stays in 32 bits: the rule by hand, the measure by hand, and both on a tiny model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moe.onnx import rounding
from moe.onnx.graph import Parts
from moe.onnx.parts import export_parts
from moe.onnx.products import products
from moe.onnx.rounding import (
    Alone,
    Ruler,
    apart,
    choose_kept,
    named_parts,
    quantise,
    replace_parts,
)
from moe.onnx.samples import rounding_samples


@pytest.fixture
def samples(bundle: Any) -> Any:
    return rounding_samples(bundle)[:2]


def alone(gate: float, numbers: int = 100, **experts: float) -> Alone:
    return Alone(error={"gate": gate, **experts}, numbers=numbers)


def test_the_worst_stay_until_the_rest_is_within_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rounding, "LIMITS", {"gate": 0.05, "expert": 1.0})
    errors = {"a": alone(0.03), "b": alone(0.12), "c": alone(0.04), "d": alone(0.09)}
    # Without b and d: sqrt(0.03^2 + 0.04^2) = 0.05, just within.
    assert choose_kept(errors) == ("b", "d")
    # d has 100 times the numbers: a and c together cost less, but leave 0.09.
    errors["d"] = alone(0.09, numbers=10_000)
    assert choose_kept(errors) == ("b", "c", "a", "d")
    assert choose_kept({"a": alone(0.03), "c": alone(0.04)}) == ()
    assert choose_kept({"a": alone(0.5)}) == ("a",)


def test_an_expert_counts_by_its_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "LIMITS", {"gate": 0.05, "expert": 0.1})
    # `a` uses 0.6 of the gate's limit, `b` 2 of the expert's and says nothing to the gate.
    assert choose_kept({"a": alone(0.03), "b": Alone(error={"qa-0": 0.2}, numbers=100)}) == ("b",)


def test_apart_by_hand() -> None:
    # Standard deviation of 1, -1, 1, -1 is 1; the root of (0.3^2 + 0.3^2) / 4 is 0.2121.
    exact = [np.array([[1.0, -1.0], [-1e9, 1.0]]), np.array([[-1.0, -1e9]])]
    rounded = [np.array([[1.3, -1.0], [-9e8, 1.0]]), np.array([[-1.3, 5.0]])]
    assert apart(exact, rounded) == pytest.approx(0.2121, abs=1e-4)


def test_a_part_alone_changes_its_own_logits(parts: Parts, samples: Any) -> None:
    ruler = Ruler(parts, samples)
    assert ruler.error(parts) == {}
    own = named_parts(parts)["qa-0"]
    changed = replace_parts(parts, {"qa-0": type(own).FromString(own.SerializeToString())})
    assert set(ruler.error(changed)) == {"qa-0"}
    assert ruler.error(changed)["qa-0"] == 0
    changed = replace_parts(parts, {"encoder": parts.encoder.FromString(
        parts.encoder.SerializeToString())})
    assert set(ruler.error(changed)) == {"gate", "sentiment-0", "sentiment-1", "qa-0", "intent-0",
                                           "slots-0"}


def test_a_model_that_reads_several_layers_is_rounded_like_others(
    bundle: Any, samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounding, "LIMITS", {"gate": 1e9, "expert": 1e9})
    bundle.model.reads_layer = (*bundle.model.reads_layer[:-1], 1)
    parts = export_parts(bundle.model)
    assert (parts.dim, parts.layer_dim) == (64, 32)
    rounded = quantise(parts, samples)
    for part in (rounded.parts.encoder, *(expert.model for expert in rounded.parts.experts)):
        assert products(part, 32**2) == []
        assert "MatMulIntegerToFloat" in {node.op_type for node in part.graph.node}


@pytest.mark.parametrize(("limit", "all_kept"), [(1e9, False), (1e-9, True)])
def test_the_limit_decides_what_is_rounded(
    parts: Parts, samples: Any, monkeypatch: pytest.MonkeyPatch, limit: float, all_kept: bool
) -> None:
    monkeypatch.setattr(rounding, "LIMITS", {"gate": limit, "expert": limit})
    before = parts.encoder.SerializeToString()
    rounded = quantise(parts, samples)
    assert parts.encoder.SerializeToString() == before
    assert rounded.parts.gate == parts.gate
    # Two layers of the encoder and a trunk in each of five experts, four matrices in each, and
    # one more in the trunks of three classifiers.
    assert len(rounded.kept) == (7 * 4 + 3 if all_kept else 0)
    assert len(products(rounded.parts.encoder, parts.dim**2)) == (8 if all_kept else 0)
    # Only the words are rounded if every product is kept.
    assert 0 < rounded.error["gate"] < (0.1 if all_kept else 1.0)
    assert rounded.report() == {"kept": list(rounded.kept), "beside": list(rounded.beside),
                                "error": rounded.error}
