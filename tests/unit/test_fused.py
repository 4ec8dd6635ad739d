"""Layers as one operator each: the same states, and where they are not used."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moe.encoder import encode_layers
from moe.fused import FusedLayers


def encoder_with_norms(tiny_encoder, **shape):
    """Random norms and biases, too: one that is left out or mixed up would go unseen."""
    encoder = tiny_encoder(**shape).eval()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return encoder


def rows(count: int = 2, tokens: int = 5) -> tuple[Tensor, Tensor]:
    ids = torch.arange(1, count * tokens + 1).view(count, tokens)
    return ids, torch.ones_like(ids, dtype=torch.bool)


class Counting:
    """A `FusedLayers` that counts its passes."""

    def __init__(self, fused: FusedLayers) -> None:
        self.fused, self.passes = fused, 0

    @property
    def is_usable(self) -> bool:
        return self.fused.is_usable

    def __call__(self, hidden_BLD: Tensor):
        self.passes += 1
        return self.fused(hidden_BLD)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_every_layer_has_the_states_of_transformers(tiny_encoder, activation: str) -> None:
    encoder = encoder_with_norms(tiny_encoder, activation=activation)
    ids, mask = rows()
    expected = encoder(ids, mask, output_hidden_states=True).hidden_states
    fused = Counting(FusedLayers(encoder))
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


def test_it_follows_the_parameters(tiny_encoder) -> None:
    encoder = encoder_with_norms(tiny_encoder)
    ids, mask = rows()
    fused = Counting(FusedLayers(encoder))
    with torch.no_grad():  # as an optimizer does
        for parameter in encoder.parameters():
            parameter.mul_(0.5)
    expected = encoder(ids, mask).last_hidden_state
    with torch.inference_mode():
        states = encode_layers(encoder, [(ids, mask)], [2], fused)[0][2]
    assert fused.passes == 1
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)


def test_a_copy_stands_on_its_own_parameters(tiny_encoder) -> None:
    encoder = encoder_with_norms(tiny_encoder)
    fused = FusedLayers(encoder)
    other, other_fused = copy.deepcopy((encoder, fused))
    ids, mask = rows()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    expected = other(ids, mask).last_hidden_state
    with torch.inference_mode():
        states = encode_layers(other, [(ids, mask)], [2], other_fused)[0][2]
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["gradients", "autocast", "training", "moved", "padding", "two"])
def test_where_it_is_not_used(tiny_encoder, case: str) -> None:
    encoder = encoder_with_norms(tiny_encoder)
    fused = Counting(FusedLayers(encoder))
    ids, mask = rows()
    blocks = [(ids, mask)] * (2 if case == "two" else 1)
    if case == "padding":
        mask[1, 3:] = False
    if case == "moved":
        encoder.double()
    if case == "training":
        encoder.train()
    autocast = torch.autocast("cpu", enabled=case == "autocast")
    with torch.inference_mode(case != "gradients"), autocast:
        expected = encode_layers(encoder, blocks, [2])[0][2]
        states = encode_layers(encoder, blocks, [2], fused)[0][2]
    assert fused.passes == 0
    torch.testing.assert_close(states, expected, atol=0, rtol=0)


def test_an_activation_without_the_operator(tiny_encoder) -> None:
    encoder = encoder_with_norms(tiny_encoder, activation="silu")
    with torch.inference_mode():
        assert not FusedLayers(encoder).is_usable
