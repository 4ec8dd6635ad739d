"""Every exported part beside the torch module that it was exported from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from moe.encoder import encode, pool
from moe.onnx.graph import Parts
from moe.onnx.parity import token_rows
from moe.onnx.parts import OUTSIDE, ExportedExpert, ExportedGate, export_module

IDS = np.random.default_rng(0).integers(4, 100, 997, dtype=np.int32)
TOKENS = ("hidden", "attention", "context")
ROWS = [(1, 1), (1, 2), (5, 33), (64, 3)]


def states(count: int, length: int, dim: int = 32) -> dict[str, torch.Tensor]:
    """Random token states with the masks of `token_rows`."""
    rows = token_rows(IDS, count, length)
    return {"hidden": torch.randn(count, length, dim),
            "attention": torch.from_numpy(rows.attention_mask),
            "context": torch.from_numpy(rows.context_mask)}


def asked(session: Any, tensors: dict[str, torch.Tensor]) -> list[np.ndarray]:
    known = {value.name for value in session.get_inputs()}
    return session.run(None, {k: v.numpy() for k, v in tensors.items() if k in known})


def readers(part: Any, name: str) -> set[str]:
    """Kinds of the nodes that read the numbers of a tensor, in whatever type and shape."""
    found: set[str] = set()
    for node in part.graph.node:
        if name in node.input and node.op_type != "Shape":
            same = node.op_type in ("Cast", "Unsqueeze", "Expand")
            found |= readers(part, node.output[0]) if same else {node.op_type}
    return found


def test_attention_reads_the_mask_of_the_tokens(parts: Parts) -> None:
    # Exported with one tensor for both masks, every expert would read that of the passage twice.
    assert readers(parts.encoder, "attention") == {"Attention"}
    for part in parts.experts:
        assert readers(part.model, "attention") == {"Attention"}, part.name
        assert ("Attention" in readers(part.model, "context")) is False, part.name
        assert bool(readers(part.model, "context")) is (part.name == "qa-0"), part.name


class Several(nn.Module):
    """Modules side by side on the same inputs: one export for all."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        self.all = nn.ModuleList(modules)

    def forward(
        self, hidden: torch.Tensor, attention: torch.Tensor, context: torch.Tensor
    ) -> tuple[Any, ...]:
        return tuple(module(hidden, attention, context) for module in self.all)


def test_a_gate_of_every_kind_reads_what_torch_reads(
    tiny_model: Any, open_part: Callable[..., Any]
) -> None:
    models = [tiny_model(pooling=pooling).eval() for pooling in ("both", "text", "mean", "first")]
    models += [tiny_model(gate=gate).eval() for gate in ({"hidden": 0}, {"kind": "linear"})]
    module = Several([ExportedGate(model) for model in models])
    names = [f"{kind}{number}" for number in range(len(models)) for kind in ("scores", "read")]
    session = open_part(export_module(module, TOKENS, names, 32))
    for size in ROWS:
        tensors = states(*size)
        said = asked(session, tensors)
        for number, model in enumerate(models):
            with torch.no_grad():
                pooled = pool(*tensors.values(), model.pooling)
                logits = model.gate(pooled, torch.arange(size[0]))
            np.testing.assert_allclose(said[2 * number], logits, atol=1e-4)
            np.testing.assert_allclose(said[2 * number + 1], pooled, atol=1e-5)


def test_an_expert_of_every_kind(tiny_model: Any, open_part: Callable[..., Any]) -> None:
    kinds = [("none", "mean", "sentiment-0"), ("none", "first", "sentiment-0"),
             ("ffn", "first", "sentiment-0"), ("transformer", "mean", "sentiment-0"),
             ("transformer", "first", "qa-0")]
    experts = [tiny_model(expert={"trunk": trunk, "pooling": pooling}).eval().experts[name]
               for trunk, pooling, name in kinds]
    samples = [states(*size) for size in ROWS]
    with torch.no_grad():
        expected = [[expert(*tensors.values()).clamp(min=OUTSIDE) for expert in experts]
                    for tensors in samples]
    names = [f"answer{number}" for number in range(len(experts))]
    module = Several([ExportedExpert(expert) for expert in experts])
    session = open_part(export_module(module, TOKENS, names, 32))
    for tensors, logits in zip(samples, expected, strict=True):
        for answer, own in zip(asked(session, tensors), logits, strict=True):
            np.testing.assert_allclose(answer, own, atol=1e-4)


@pytest.mark.parametrize("size", [*ROWS, (3, 64)])
def test_the_encoder(
    bundle: Any, parts: Parts, open_part: Callable[..., Any], size: tuple[int, int]
) -> None:
    rows = token_rows(IDS, *size)
    tensors = {"input_ids": torch.from_numpy(rows.input_ids),
               "attention": torch.from_numpy(rows.attention_mask)}
    with torch.no_grad():
        expected = encode(bundle.model.encoder, *tensors.values())
    (hidden,) = asked(open_part(parts.encoder), tensors)
    # What stands at padding is nobody's.
    np.testing.assert_allclose(hidden[rows.attention_mask], expected[tensors["attention"]],
                               atol=1e-5)


def test_the_model_stays_as_it_was(bundle: Any, parts: Parts) -> None:
    attention = bundle.model.encoder.transformer.layer[0].attention
    assert type(attention).__name__ == "DistilBertSelfAttention"
    assert type(bundle.model.experts["qa-0"].trunk.attention).__name__ == "SelfAttention"
    assert (parts.dim, parts.pooled_dim) == (32, 64)
