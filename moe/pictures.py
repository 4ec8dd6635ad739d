"""Pictures for TensorBoard at each validation."""

from __future__ import annotations

from lightning.pytorch.callbacks import Callback


class Pictures(Callback):
    """placeholder"""
