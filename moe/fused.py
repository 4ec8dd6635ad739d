"""The encoder's layers, each as the one operator that PyTorch has for it: inference on a CPU.

Dimensions: B rows, L tokens, D encoder width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DistilBertModel

# Private, so it may go: layers are then computed as in training. `nn.TransformerEncoderLayer` calls
# it after checks in Python that take as long as it saves on a short text (docs/performance.md).
_OPERATOR: Any = getattr(torch, "_transformer_encoder_layer_fwd", None)
_IS_GELU = {"gelu": True, "relu": False}  # the activations that it knows
_LONGEST = 128  # tokens: it holds all attention scores, and for long rows it gains nothing


class FusedLayers:
    """The layers of a DistilBERT on its own parameters; a copy of a model goes without.

    Args:
        encoder: The DistilBERT. Its parameters of query, key and value are moved, to lie one after
            the other in memory, where the operator reads them as one: nothing is held twice.
    """

    def __init__(self, encoder: DistilBertModel) -> None:
        activation: str = encoder.config.activation
        is_known = _OPERATOR is not None and activation in _IS_GELU
        layers: Any = encoder.transformer.layer if is_known else ()
        self._layers = [_arguments(layer, _IS_GELU[activation]) for layer in layers]
        self._addresses = [
            (parameter, parameter.data_ptr())
            for layer in layers
            for linear in _projections(layer)
            for parameter in (linear.weight, linear.bias)
        ]
        self._encoder = encoder
        modules = list(encoder.transformer.modules())
        self._parts = [part for module in (encoder, *modules) for part in _parts(module)]
        self._hooks = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]

    def __deepcopy__(self, memo: object) -> None:
        return None

    def fits(self, encoder: DistilBertModel, tokens: int, bias: Tensor | None) -> bool:
        """Whether these are the layers of `encoder` as they are now, in a plain forward pass.

        Not in training or under autocast, not with padding, with which the operator is slow, and
        not once a part of the encoder was replaced, moved, or got a hook.

        Args:
            encoder: Whose layers are wanted.
            tokens: L.
            bias: `moe.attention.padding_bias`: None where nothing is padded.
        """
        return (
            len(self._layers) > 0
            and bias is None
            and tokens <= _LONGEST
            and torch.is_inference_mode_enabled()
            and not torch.is_autocast_enabled("cpu")
            and encoder is self._encoder
            and all(holder.get(name) is part for holder, name, part in self._parts)
            and all(parameter.data_ptr() == address for parameter, address in self._addresses)
            and not any(self._hooks)
        )

    def __call__(self, hidden_BLD: Tensor) -> Iterator[Tensor]:
        """States (B, L, D) after each layer."""
        for arguments in self._layers:
            hidden_BLD = _OPERATOR(hidden_BLD, *arguments)
            yield hidden_BLD


def _parts(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """What makes up a module in evaluation mode: where it is kept, under which name, and itself."""
    yield vars(module), "training", False
    for holder in (module._modules, module._parameters):
        for name, part in holder.items():
            yield holder, name, part


def _projections(layer: Any) -> Sequence[Any]:
    """Query, key and value."""
    return layer.attention.q_lin, layer.attention.k_lin, layer.attention.v_lin


def _arguments(layer: Any, is_gelu: bool) -> tuple[Any, ...]:
    """What the operator takes after the states."""
    first, second = layer.sa_layer_norm, layer.output_layer_norm
    linears = _projections(layer)
    return (
        layer.attention.dim,
        layer.attention.n_heads,
        _side_by_side([linear.weight for linear in linears]),
        _side_by_side([linear.bias for linear in linears]),
        *_parameters(layer.attention.out_lin),
        is_gelu,
        False,  # the norms come after the residuals
        first.eps,
        *_parameters(first),
        *_parameters(second),
        *_parameters(layer.ffn.lin1),
        *_parameters(layer.ffn.lin2),
    )


@torch.inference_mode(False)  # parameters stay fit for training, wherever this is called
@torch.no_grad()
def _side_by_side(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The parameters one after the other; each becomes a view of its part."""
    joined = torch.cat(list(parameters))
    for parameter, part in zip(parameters, joined.chunk(len(parameters)), strict=True):
        parameter.data = part
    return joined


def _parameters(module: Any) -> tuple[nn.Parameter, nn.Parameter]:
    return module.weight, module.bias
