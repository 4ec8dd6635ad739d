"""Encoder, gate and every expert in ONNX, each by itself, exported from the model's own modules.

Only attention is replaced: by ONNX's own operator for it.

Dimensions: N rows, L tokens, D encoder width, E experts, C classes.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moe.encoder import early_layers, pool, pooled_width, text_means
from moe.model import Mixture
from moe.onnx.graph import ExpertPart, Parts

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 23  # the first with Attention
OUTSIDE = -1e9  # for -inf: its softmax is 0 too, and sums and differences of it are numbers


class Attend(nn.Module):
    """Projections and attention of all heads: one product, and one operator for what follows it.

    Exported step by step that is some fifteen operators and copies, whose cost is most of a short
    request. ONNX Runtime's `com.microsoft::Attention`, which has the projections inside, multiplies
    by them head by head: 1.4 times as slow for 32 rows of 32 tokens (`docs/performance.md`).

    Args:
        query, key, value: The three projections.
        num_heads: Attention heads.
    """

    def __init__(self, query: nn.Linear, key: nn.Linear, value: nn.Linear, num_heads: int) -> None:
        super().__init__()
        self.projections, self.num_heads = side_by_side((query, key, value)), num_heads

    def forward(self, hidden_NLD: Tensor, mask_N1LL: Tensor) -> Tensor:
        """(N, L, D) of the same; where `mask_N1LL` is False a token is not attended to."""
        query_NLD, key_NLD, value_NLD = self.projections(hidden_NLD).chunk(3, -1)
        return _attention(query_NLD, key_NLD, value_NLD, mask_N1LL, self.num_heads)


class AttendFirst(nn.Module):
    """What the first token alone gathers: see `Attend`."""

    def __init__(self, query: nn.Linear, key: nn.Linear, value: nn.Linear, num_heads: int) -> None:
        super().__init__()
        self.query, self.num_heads = query, num_heads
        self.projections = side_by_side((key, value))

    def forward(self, hidden_NLD: Tensor, mask_N11L: Tensor) -> Tensor:
        """(N, 1, D) of the first token; where `mask_N11L` is False a token is not attended to."""
        key_NLD, value_NLD = self.projections(hidden_NLD).chunk(2, -1)
        query_N1D = self.query(hidden_NLD[:, :1])
        return _attention(query_N1D, key_NLD, value_NLD, mask_N11L, self.num_heads)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, num_heads: int) -> Tensor:
    return torch.onnx.ops.attention(
        query, key, value, mask, q_num_heads=num_heads, kv_num_heads=num_heads
    )[0]


def side_by_side(layers: Sequence[nn.Linear]) -> nn.Linear:
    """One layer whose outputs are those of several, one after the other."""
    width = sum(layer.out_features for layer in layers)
    joined = nn.Linear(layers[0].in_features, width, device="meta")
    joined.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]))
    joined.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]))
    return joined


def token_pairs(attention: Tensor) -> Tensor:
    """(N, 1, L, L) of `attention` (N, L) bool: the runtime wants a row for every token."""
    return attention[:, None, None, :].expand(-1, 1, attention.shape[1], -1)


class _EncoderAttention(nn.Module):
    """In the place of a `DistilBertSelfAttention`."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.attend = Attend(block.q_lin, block.k_lin, block.v_lin, block.n_heads)
        self.output = block.out_lin

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> tuple[Tensor, None]:
        return self.output(self.attend(hidden_states, attention_mask)), None


class _TrunkAttention(nn.Module):
    """In the place of a trunk's `SelfAttention`."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        layers = block.query, block.key, block.value, block.num_heads
        self.attend, self.attend_first = Attend(*layers), AttendFirst(*layers)
        self.output, self.norm = block.output, block.norm

    def forward(self, hidden_NLD: Tensor, attention_mask: Tensor, first_only: bool) -> Tensor:
        if first_only:
            asking_NMD = hidden_NLD[:, :1]
            attended_NMD = self.attend_first(hidden_NLD, attention_mask[:, None, None, :])
        else:
            asking_NMD = hidden_NLD
            attended_NMD = self.attend(hidden_NLD, token_pairs(attention_mask))
        normed_NMD: Tensor = self.norm(self.output(attended_NMD) + asking_NMD)
        return normed_NMD


class ExportedEncoder(nn.Module):
    """Token states (N, L, D) of `input_ids` and `attention` (N, L).

    Args:
        encoder: A DistilBERT, which is changed.
        numbers: Layers, counted from 1, whose states (N, L, D) are set side by side.
    """

    def __init__(self, encoder: Any, numbers: Sequence[int]) -> None:
        super().__init__()
        self.embeddings, self.transformer = encoder.embeddings, encoder.transformer
        self.numbers = tuple(numbers)
        for layer in self.transformer.layer:
            layer.attention = _EncoderAttention(layer.attention)

    def forward(self, input_ids: Tensor, attention: Tensor) -> Tensor:
        # Without DistilBertModel.forward, which makes its mask in more operators.
        hidden_NLD: Tensor = self.embeddings(input_ids)
        pairs_N1LL = token_pairs(attention)
        layers = []
        for layer in self.transformer.layer:
            hidden_NLD = layer(hidden_NLD, pairs_N1LL)
            layers.append(hidden_NLD)
        wanted = [layers[number - 1] for number in self.numbers]
        return wanted[0] if len(wanted) == 1 else torch.cat(wanted, -1)


class ExportedGate(nn.Module):
    """Gate logits (N, E) of each row alone, and what the gate read (N, D or 2D)."""

    def __init__(self, model: Mixture) -> None:
        super().__init__()
        self.gate, self.pooling = model.gate, model.pooling
        self.last = _place(model, model.encoder.config.n_layers)
        if self.gate.bricks:
            self.early = [_place(model, number) for number in early_layers(model.encoder)]

    def forward(self, hidden: Tensor, attention: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        pooled = pool(_read(hidden, self.last), attention, context, self.pooling)
        if not self.gate.bricks:
            return self.gate.logits(pooled), pooled
        states = [_read(hidden, place) for place in self.early]
        return self.gate.logits(pooled, text_means(states, attention, context)), pooled


class ExportedExpert(nn.Module):
    """Logits (N, C), (N, L, 2) or (N, L, C), which are finite.

    Args:
        expert: It is changed.
        place: Of what it reads in `hidden`.
    """

    def __init__(self, expert: Any, place: slice | None = None) -> None:
        super().__init__()
        self.expert, self.place = expert, place
        if expert.trunk.attention is not None:
            expert.trunk.attention = _TrunkAttention(expert.trunk.attention)

    def forward(self, hidden: Tensor, attention: Tensor, context: Tensor) -> Tensor:
        logits: Tensor = self.expert(_read(hidden, self.place), attention, context)
        return logits.clamp(min=OUTSIDE)


@torch.no_grad()
def export_parts(model: Mixture) -> Parts:
    """The parts of a graph, in 32 bits.

    Args:
        model: It is not changed.
    """
    model = copy.deepcopy(model).cpu().eval()
    dim: int = model.encoder.config.dim
    numbers = model.read_layers
    width = len(numbers) * dim
    tokens = ("hidden", "attention", "context")
    return Parts(
        dim=width,
        layer_dim=dim,
        pooled_dim=pooled_width(dim, model.pooling),
        encoder=export_module(
            ExportedEncoder(model.encoder, numbers), ("input_ids", "attention"), ["states"], width
        ),
        gate=export_module(ExportedGate(model), tokens, ["scores", "embedding"], width),
        experts=tuple(
            ExpertPart(
                name=name,
                model=export_module(
                    ExportedExpert(expert, _place(model, layer)),
                    tokens,
                    ["answer"],
                    width,
                ),
            )
            for (name, expert), layer in zip(model.experts.items(), model.reads_layer, strict=True)
        ),
    )


def _place(model: Mixture, layer: int) -> slice | None:
    """Where the states of a layer are in `hidden`; None if they are all of it."""
    if len(model.read_layers) == 1:
        return None
    dim: int = model.encoder.config.dim
    place = model.read_layers.index(layer)
    return slice(place * dim, (place + 1) * dim)


def _read(hidden: Tensor, place: slice | None) -> Tensor:
    return hidden if place is None else hidden[..., place]


def export_module(
    module: nn.Module, inputs: Sequence[str], outputs: Sequence[str], dim: int
) -> ModelProto:
    """A module whose inputs are (N, L) or, if `hidden`, (N, L, D), for any N and L."""
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with _quiet():
        program = torch.onnx.export(
            module.eval(),
            # A tensor for each: the exporter takes one that is given twice for a single input,
            # and attention then reads the mask of the passage.
            tuple(_example(name, dim) for name in inputs),
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=tuple(free for _ in inputs),
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def _example(name: str, dim: int) -> Tensor:
    """Two rows of eight tokens: sizes of 0 and 1 would be taken for constants."""
    if name == "hidden":
        return torch.randn(2, 8, dim)
    return torch.ones(2, 8, dtype=torch.int64 if name == "input_ids" else torch.bool)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that are not needed here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            yield
        finally:
            logging.disable(before)
