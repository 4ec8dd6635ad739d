"""One model for several language tasks: a shared DistilBERT, a learned gate, sparse experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    from pathlib import Path

    from moe import predict
    from moe.onnx.bundle import Precision
    from moe.onnx.predictor import OnnxMixtureOfExperts

__all__ = ["MixtureOfExperts"]


class MixtureOfExperts:
    """The door to both backends; it imports torch only for the one that needs it."""

    @overload
    @staticmethod
    def from_pretrained(
        source: str | Path, device: str | None = ..., *, backend: Literal["torch"] = ...
    ) -> predict.MixtureOfExperts: ...

    @overload
    @staticmethod
    def from_pretrained(
        source: str | Path,
        *,
        backend: Literal["onnx"],
        precision: Precision | None = ...,
        threads: int | None = ...,
    ) -> OnnxMixtureOfExperts: ...

    @staticmethod
    def from_pretrained(
        source: str | Path,
        device: str | None = None,
        *,
        backend: Literal["torch", "onnx"] = "torch",
        **options: Any,
    ) -> Any:
        """A trained mixture that answers requests.

        Args:
            source: A `.ckpt`, a folder that `save_pretrained` wrote, or a hub id; with `onnx` a
                folder that `scripts/export.py` wrote.
            device: Of `torch`: where to compute; None takes a GPU if there is one.
            backend: What computes.
            options: Of `onnx`: `precision` (`fp32` or `int8`; see `moe.onnx.bundle.load_onnx`) and
                `threads` (without it one per core).

        Raises:
            InputError: It is missing, damaged, of another format version, or of another backend.
        """
        from moe.types import InputError

        if backend == "torch":
            from moe.predict import MixtureOfExperts as Torch

            return Torch.from_pretrained(source, device, **options)
        if backend != "onnx":
            raise InputError(f"from_pretrained: backend must be 'torch' or 'onnx', got {backend!r}")
        if device is not None:
            raise InputError(
                f"from_pretrained: device {device!r} goes with backend 'torch'; 'onnx' computes on "
                "the CPU"
            )
        from moe.onnx.predictor import OnnxMixtureOfExperts

        return OnnxMixtureOfExperts.from_pretrained(source, **options)
