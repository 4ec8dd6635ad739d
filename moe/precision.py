"""Where to compute and in which numbers: a GPU if there is one, bf16 where the hardware has it."""

from __future__ import annotations

from typing import Any

import torch

from moe.types import InputError


def pick_device(name: str | None = None) -> torch.device:
    """The device of that name; None takes a GPU if there is one."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def pick_precision(trainer: dict[str, Any]) -> str:
    """bf16 where the hardware computes in it, else 32 bits; an explicit choice stays.

    On a CPU that is AVX512_BF16 or AMX: elsewhere PyTorch emulates bfloat16, slower than
    float32 (`docs/results.md`).
    """
    chosen = trainer.get("precision")
    if chosen is not None:
        if str(chosen).startswith("16"):
            raise InputError(
                f"trainer.precision {chosen}: float16 needs loss scaling, which this training has "
                "not: use bf16-mixed or 32-true"
            )
        return str(chosen)
    accelerator = trainer.get("accelerator", "auto")
    if torch.cuda.is_available() and accelerator in ("auto", "gpu", "cuda"):
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    if accelerator in ("auto", "cpu") and not torch.backends.mps.is_available():
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return "bf16-mixed" if fast else "32-true"
    return "32-true"
