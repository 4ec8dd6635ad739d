"""Layers as one operator each: the same states, and where they are not used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moe import fused as module
from moe.encoder import encode_layers, keep_layers
from moe.fused import FusedLayers


def encoder_with_norms(tiny_encoder, **shape):
    """Random norms and biases, too: one that is left out or mixed up would go unseen."""
    encoder = tiny_encoder(**shape).eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return encoder


def rows(count: int = 2, tokens: int = 5) -> tuple[Tensor, Tensor]:
    ids = torch.arange(1, count * tokens + 1).view(count, tokens) % 100
    return ids, torch.ones_like(ids, dtype=torch.bool)


class Counting(FusedLayers):
    """Counts its passes."""

    passes = 0

    def __call__(self, hidden_BLD: Tensor):
        self.passes += 1
        return super().__call__(hidden_BLD)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_every_layer_has_the_states_of_transformers(tiny_encoder, activation: str) -> None:
    encoder = encoder_with_norms(tiny_encoder, activation=activation)
    ids, mask = rows()
    # Of a copy: transformers leaves hooks behind, with which it is not used.
    expected = copy.deepcopy(encoder)(ids, mask, output_hidden_states=True).hidden_states
    fused = Counting(encoder)
    with torch.inference_mode():
        states = encode_layers(encoder, [(ids, mask)], [1, 2], fused)[0]
    assert fused.passes == 1
    for number in (1, 2):
        torch.testing.assert_close(states[number], expected[number], atol=1e-5, rtol=1e-5)


def test_nothing_is_held_twice_and_everything_can_be_saved(tiny_encoder, tmp_path: Path) -> None:
    encoder = encoder_with_norms(tiny_encoder)
    before = copy.deepcopy(encoder.state_dict())
    FusedLayers(encoder)
    torch.testing.assert_close(encoder.state_dict(), before, atol=0, rtol=0)
    save_file(encoder.state_dict(), tmp_path / "a.safetensors")
    torch.testing.assert_close(load_file(tmp_path / "a.safetensors"), dict(before), atol=0, rtol=0)
    attention = encoder.transformer.layer[0].attention
    owners = [linear.weight.untyped_storage().data_ptr()
              for linear in (attention.q_lin, attention.k_lin, attention.v_lin)]
    assert len(set(owners)) == 1


def test_it_follows_what_an_optimizer_does(tiny_encoder) -> None:
    encoder = encoder_with_norms(tiny_encoder)
    ids, mask = rows()
    fused = Counting(encoder)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.mul_(0.5)
    expected = encoder(ids, mask).last_hidden_state
    with torch.inference_mode():
        states = encode_layers(encoder, [(ids, mask)], [2], fused)[0][2]
    assert fused.passes == 1
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)


def test_a_copy_goes_without(tiny_encoder) -> None:
    encoder = encoder_with_norms(tiny_encoder)
    assert copy.deepcopy((encoder, FusedLayers(encoder)))[1] is None


def test_parameters_stay_fit_for_training(tiny_encoder) -> None:
    encoder = encoder_with_norms(tiny_encoder)
    with torch.inference_mode():
        FusedLayers(encoder)
    encoder(*rows()).last_hidden_state.sum().backward()
    assert encoder.transformer.layer[0].attention.q_lin.weight.grad is not None


def new_norm(layer: Any) -> None:
    layer.output_layer_norm = nn.LayerNorm(32).eval()


def new_parameter(layer: Any) -> None:
    layer.attention.out_lin.weight = nn.Parameter(torch.rand(32, 32))


def new_numbers_of_a_key(layer: Any) -> None:
    layer.attention.k_lin.weight.data = torch.rand(32, 32)


def new_numbers_of_a_bias(layer: Any) -> None:
    layer.attention.v_lin.bias.data = torch.rand(32)


def hook(layer: Any) -> None:
    layer.ffn.lin1.register_forward_hook(lambda module, inputs, output: output + 1)


def training(layer: Any) -> None:
    layer.ffn.train()


@pytest.mark.parametrize("change", [
    new_norm, new_parameter, new_numbers_of_a_key, new_numbers_of_a_bias, hook, training,
])
def test_it_is_not_used_once_the_encoder_was_changed(
    tiny_encoder, change: Callable[[Any], None]
) -> None:
    encoder = encoder_with_norms(tiny_encoder)
    fused = Counting(encoder)
    change(encoder.transformer.layer[1])
    with torch.inference_mode():
        expected = encode_layers(encoder, [rows()], [2])[0][2]
        states = encode_layers(encoder, [rows()], [2], fused)[0][2]
    assert fused.passes == 0
    torch.testing.assert_close(states, expected, atol=0, rtol=0)


@pytest.mark.parametrize("case", [
    "gradients", "autocast", "moved", "fewer layers", "another encoder", "padding", "two blocks",
    "long",
])
def test_where_it_is_not_used(tiny_encoder, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = encoder_with_norms(tiny_encoder)
    fused = Counting(encoder)
    ids, mask = rows()
    if case == "padding":
        mask[1, 3:] = False
    if case == "moved":
        encoder.double()
    if case == "fewer layers":
        keep_layers(encoder, 1)
    if case == "another encoder":
        encoder = encoder_with_norms(tiny_encoder)
    if case == "long":
        monkeypatch.setattr(module, "_LONGEST", 4)
    blocks = [(ids, mask)] * (2 if case == "two blocks" else 1)
    last = encoder.config.n_layers
    autocast = torch.autocast("cpu", enabled=case == "autocast")
    with torch.inference_mode(case != "gradients"), autocast:
        expected = encode_layers(encoder, blocks, [last])[0][last]
        states = encode_layers(encoder, blocks, [last], fused)[0][last]
    assert fused.passes == 0
    torch.testing.assert_close(states, expected, atol=0, rtol=0)


@pytest.mark.parametrize("lacks", ["the activation", "the operator"])
def test_without_an_operator(tiny_encoder, lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    activation = "silu" if lacks == "the activation" else "gelu"
    if lacks == "the operator":
        monkeypatch.setattr(module, "_OPERATOR", None)
    encoder = encoder_with_norms(tiny_encoder, activation=activation)
    with torch.inference_mode():
        assert not FusedLayers(encoder).fits(encoder, 5, None)
