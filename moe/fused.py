"""The encoder's layers, each as the one operator that PyTorch has for it: inference on a CPU.

Dimensions: B rows, L tokens, D encoder width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DistilBertModel

_IS_GELU = {"gelu": True, "relu": False}  # the activations that the operator knows


class FusedLayers:
    """The layers of a DistilBERT for rows without padding; they stand on its own parameters.

    `nn.TransformerEncoderLayer` calls the same operator, after checks in Python that take as long
    as it saves on a short text. With padding it is slower than `moe.attention.attend`
    (docs/performance.md).

    Args:
        encoder: The DistilBERT. Its parameters of query, key and value are moved, to lie one after
            the other in memory, where the operator reads them as one: nothing is held twice.
    """

    def __init__(self, encoder: DistilBertModel) -> None:
        self._encoder = encoder
        activation: str = encoder.config.activation
        self._is_known = activation in _IS_GELU
        layers: Any = encoder.transformer.layer if self._is_known else ()
        self._layers = [_arguments(layer, _IS_GELU[activation]) for layer in layers]

    @property
    def is_usable(self) -> bool:
        """Whether this is a plain forward pass, and the parameters are where they were.

        A model that is moved to another device or type gets a new memory for each.
        """
        layers: Any = self._encoder.transformer.layer
        return (
            self._is_known
            and torch.is_inference_mode_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not self._encoder.training
            and all(
                layer.attention.q_lin.weight.data_ptr() == arguments[2].data_ptr()
                for layer, arguments in zip(layers, self._layers, strict=True)
            )
        )

    def __call__(self, hidden_BLD: Tensor) -> Iterator[Tensor]:
        """States (B, L, D) after each layer."""
        for arguments in self._layers:
            hidden_BLD = torch._transformer_encoder_layer_fwd(hidden_BLD, *arguments)
            yield hidden_BLD


def _arguments(layer: Any, is_gelu: bool) -> tuple[Any, ...]:
    """What the operator takes after the states."""
    attention, first, second = layer.attention, layer.sa_layer_norm, layer.output_layer_norm
    linears = (attention.q_lin, attention.k_lin, attention.v_lin)
    return (
        attention.dim,
        attention.n_heads,
        _joined([linear.weight for linear in linears]),
        _joined([linear.bias for linear in linears]),
        *_parameters(attention.out_lin),
        is_gelu,
        False,  # the norms come after the residuals
        first.eps,
        *_parameters(first),
        *_parameters(second),
        *_parameters(layer.ffn.lin1),
        *_parameters(layer.ffn.lin2),
    )


@torch.no_grad()
def _joined(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The parameters one after the other; each becomes a view of its part."""
    joined = torch.cat(list(parameters))
    for parameter, part in zip(parameters, joined.chunk(len(parameters)), strict=True):
        parameter.data = part
    return joined


def _parameters(module: Any) -> tuple[nn.Parameter, nn.Parameter]:
    return module.weight, module.bias
