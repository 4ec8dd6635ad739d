"""Self-attention that padding takes no part in, for batches of many shapes.

Dimensions: B rows, L tokens, M tokens that attend to them, D width, H heads, d width of a head.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

# Without cuDNN's, which PyTorch prefers on recent GPUs: it makes a plan for every new shape, and
# nearly every batch of ours is one (docs/performance.md).
_KERNELS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def padding_bias(attention_mask: Tensor, hidden: Tensor) -> Tensor | None:
    """What `attend` adds to its scores (B, 1, 1, L): 0 at tokens, -inf at padding.

    Made once for all layers: from a mask, each would make its own. None where a CPU finds no
    padding; a GPU would have to be waited for.

    Args:
        attention_mask: (B, L) bool, True at tokens.
        hidden: (..., D) states that are attended to. The bias has their type, or that of
            autocast where it is on.
    """
    device_type = hidden.device.type
    if device_type == "cpu" and attention_mask.all():
        return None
    dtype = hidden.dtype
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    bias_BL = torch.zeros_like(attention_mask, dtype=dtype).masked_fill(~attention_mask, -torch.inf)
    return bias_BL[:, None, None, :]


def attend(
    query_BMD: Tensor,
    key_BLD: Tensor,
    value_BLD: Tensor,
    bias_B11L: Tensor | None,
    *,
    num_heads: int,
    dropout: float = 0.0,
) -> Tensor:
    """What each of M tokens gathers of all (B, M, D).

    Args:
        query_BMD: What tokens look for.
        key_BLD: What they are found by.
        value_BLD: What is gathered of them.
        bias_B11L: `padding_bias` of the rows (B, 1, 1, L); None where nothing is padded.
        num_heads: A divisor of D.
        dropout: Probability of dropout on attention weights.
    """
    query_BHMd, key_BHLd, value_BHLd = (
        tensor.view(*tensor.shape[:2], num_heads, tensor.shape[-1] // num_heads).transpose(1, 2)
        for tensor in (query_BMD, key_BLD, value_BLD)
    )
    with sdpa_kernel(_KERNELS) if query_BMD.is_cuda else nullcontext():
        gathered_BHMd = scaled_dot_product_attention(
            query_BHMd,
            key_BHLd,
            value_BHLd,
            attn_mask=bias_B11L,
            dropout_p=dropout,
        )
    return gathered_BHMd.transpose(1, 2).flatten(2)
