"""Self-attention that padding takes no part in, for batches of many shapes.

Dimensions: B rows, L tokens, D width, H heads, d width of a head.
"""

from __future__ import annotations

from contextlib import nullcontext

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


def attend(
    query_BLD: Tensor,
    key_BLD: Tensor,
    value_BLD: Tensor,
    attention_mask: Tensor,
    *,
    num_heads: int,
    dropout: float = 0.0,
) -> Tensor:
    """What each token gathers (B, L, D); `attention_mask` (B, L) bool is True at tokens.

    Args:
        query_BLD: What tokens look for.
        key_BLD: What they are found by.
        value_BLD: What is gathered of them.
        attention_mask: Of the rows.
        num_heads: A divisor of D.
        dropout: Probability of dropout on attention weights.
    """
    query_BHLd, key_BHLd, value_BHLd = (
        tensor.unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for tensor in (query_BLD, key_BLD, value_BLD)
    )
    with sdpa_kernel(_KERNELS) if query_BLD.is_cuda else nullcontext():
        gathered_BHLd = scaled_dot_product_attention(
            query_BHLd,
            key_BHLd,
            value_BHLd,
            attn_mask=attention_mask[:, None, None, :],
            dropout_p=dropout,
        )
    return gathered_BHLd.transpose(1, 2).flatten(2)
