"""The shared encoder, a `DistilBertModel`: its shape, how it runs, and what is read of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import DistilBertConfig, DistilBertModel

from moe.attention import attend, padding_bias
from moe.fused import FusedLayers
from moe.types import InputError, Pooling

Block = tuple[Tensor, Tensor]  # input_ids (B, L) and attention_mask (B, L) of some rows
_SHAPE = (
    "vocab_size", "max_position_embeddings", "sinusoidal_pos_embds", "n_layers", "n_heads", "dim",
    "hidden_dim", "dropout", "attention_dropout", "activation", "initializer_range", "pad_token_id",
)  # fmt: skip


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


def _layers(
    encoder: DistilBertModel, blocks: Sequence[Block], fused: FusedLayers | None
) -> Iterator[Tensor]:
    """States of the tokens of all blocks after each layer: (N, D), or (B, L, D) of a fused one."""
    ids_N = _joined([ids for ids, _ in blocks])
    numbers: Any = encoder.embeddings.position_ids
    places = [numbers[:, : ids.shape[1]].expand_as(ids) for ids, _ in blocks]
    hidden_ND = encoder.embeddings(
        ids_N.unsqueeze(0), position_ids=_joined(places).unsqueeze(0)
    ).squeeze(0)
    masks = [mask for _, mask in blocks]
    biases = [padding_bias(mask, hidden_ND) for mask in masks]
    if fused is not None and len(masks) == 1 and fused.fits(encoder, masks[0].shape[1], biases[0]):
        yield from fused(hidden_ND.view(*masks[0].shape, -1))
        return
    layers: Any = encoder.transformer.layer
    for layer in layers:
        mixed_ND = layer.attention.out_lin(_attend(layer.attention, hidden_ND, masks, biases))
        hidden_ND = layer.sa_layer_norm(mixed_ND + hidden_ND)
        hidden_ND = layer.output_layer_norm(_feed_forward(layer.ffn, hidden_ND) + hidden_ND)
        yield hidden_ND


def _feed_forward(block: Any, hidden_ND: Tensor) -> Tensor:
    """The block without its `forward`, which asks Python for a signature at every call."""
    compiled = block._compiled_call_impl is not None
    fed_ND: Tensor = block(hidden_ND) if compiled else block.ff_chunk(hidden_ND)
    return fed_ND


def _split(hidden_ND: Tensor, masks: Sequence[Tensor]) -> list[Tensor]:
    """The states (B, L, D) of each block, whose mask is (B, L)."""
    if len(masks) == 1:
        return [hidden_ND.view(*masks[0].shape, -1)]
    parts = hidden_ND.split([mask.numel() for mask in masks])
    return [part.view(*mask.shape, -1) for part, mask in zip(parts, masks, strict=True)]


def _joined(blocks: Sequence[Tensor]) -> Tensor:
    """The rows of all blocks (B, L, ...) one after the other (N, ...)."""
    parts = [block.flatten(0, 1) for block in blocks]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend(
    attention: Any, hidden_ND: Tensor, masks: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> Tensor:
    """Self-attention of a layer (N, D) inside each block, before its output projection."""
    projected = [
        _split(linear(hidden_ND), masks)
        for linear in (attention.q_lin, attention.k_lin, attention.v_lin)
    ]
    heads, dropout = attention.n_heads, attention.dropout.p if attention.training else 0.0
    return _joined(
        [
            attend(query, key, value, bias, num_heads=heads, dropout=dropout)
            for query, key, value, bias in zip(*projected, biases, strict=True)
        ]
    )


def encode_layers(
    encoder: DistilBertModel,
    blocks: Sequence[Block],
    numbers: Collection[int],
    fused: FusedLayers | None = None,
) -> list[dict[int, Tensor]]:
    """Token states (B, L, D) of some layers, by number from 1, of each block of rows.

    Args:
        encoder: The DistilBERT.
        blocks: `input_ids` (B, L) int64 and `attention_mask` (B, L) bool of each.
        numbers: Which layers.
        fused: Its layers as one operator each, for where they can be used.
    """
    kept = {
        number: _split(states, [mask for _, mask in blocks])
        for number, states in enumerate(_layers(encoder, blocks, fused), 1)
        if number in numbers
    }
    return [{number: kept[number][block] for number in kept} for block in range(len(blocks))]


def early_layers(encoder: DistilBertModel) -> range:
    """The layers, counted from 1, that gate bricks read: the first half (`docs/bricks.md`)."""
    return range(1, max(1, len(encoder.transformer.layer) // 2) + 1)


def word_layer(encoder: DistilBertModel) -> int:
    """The layer, counted from 1, whose states a grown tagger reads (`docs/bricks.md`)."""
    return max(1, len(encoder.transformer.layer) // 3)


def text_means(layers: Sequence[Tensor], attention_mask: Tensor, context_mask: Tensor) -> Tensor:
    """(B, P): the mean over the tokens before the passage in each layer (B, L, D), side by side."""
    masks_BML = _read_masks(attention_mask, context_mask, "text")
    return torch.cat([_means(hidden_BLD, masks_BML) for hidden_BLD in layers], -1)


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
    return _means(hidden_BLD, _read_masks(attention_mask, context_mask, kind))


def _read_masks(attention_mask: Tensor, context_mask: Tensor, kind: Pooling) -> Tensor:
    """(B, M, L) bool: the tokens of each of the M means."""
    text_mask = attention_mask & (context_mask.cumsum(1) == 0)
    masks = {"mean": [attention_mask], "text": [text_mask], "both": [text_mask, attention_mask]}
    return torch.stack(masks[kind], dim=1)


def _means(hidden_BLD: Tensor, masks_BML: Tensor) -> Tensor:
    """The means (B, MD) over the tokens of each mask, side by side."""
    weights_BML = masks_BML.to(hidden_BLD.dtype)
    means_BMD = torch.bmm(weights_BML, hidden_BLD) / weights_BML.sum(-1, keepdim=True)
    return means_BMD.flatten(1)


def pooled_width(dim: int, kind: Pooling) -> int:
    """Width of what `pool` returns for an encoder of width `dim`."""
    return 2 * dim if kind == "both" else dim
