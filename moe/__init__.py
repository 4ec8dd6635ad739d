"""One model for several language tasks: a shared DistilBERT, a learned gate, sparse experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe.predict import MixtureOfExperts

__all__ = ["MixtureOfExperts"]


def __getattr__(name: str) -> Any:
    # Lazy: the command line's help need not wait for transformers.
    if name == "MixtureOfExperts":
        from moe.predict import MixtureOfExperts

        return MixtureOfExperts
    raise AttributeError(f"module 'moe' has no attribute {name!r}")
