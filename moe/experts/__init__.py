"""The table of expert types. A new type is one file beside this one and one line here."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from moe.experts.base import Expert
from moe.experts.classifier import Classifier
from moe.experts.span import Span
from moe.experts.tagger import Tagger
from moe.experts.trunk import Trunk
from moe.types import TaskSpec

__all__ = ["EXPERT_TYPES", "Classifier", "Expert", "Span", "Tagger", "Trunk", "build_expert"]


def _build_classifier(*, task: TaskSpec, pooling: Any, **shape: Any) -> Expert:
    return Classifier(num_classes=task.num_classes, pooling=pooling, **shape)


def _build_span(*, task: TaskSpec, pooling: Any, **shape: Any) -> Expert:
    return Span(**shape)


def _build_tagger(*, task: TaskSpec, pooling: Any, **shape: Any) -> Expert:
    return Tagger(num_classes=task.num_classes, **shape)


EXPERT_TYPES = {"classifier": _build_classifier, "span": _build_span, "tagger": _build_tagger}


def build_expert(
    task: TaskSpec,
    *,
    dim: int,
    num_heads: int,
    hidden_dim: int,
    trunk: Literal["none", "ffn", "transformer"],
    pooling: Literal["first", "mean"],
    dropout: float,
) -> Expert:
    """One expert of `task` with DistilBERT's initialisation.

    Args:
        task: What it answers.
        dim: Encoder width.
        num_heads: Attention heads of a `transformer` trunk.
        hidden_dim: Feed-forward width of the trunk.
        trunk: Kind of trunk.
        pooling: What a classifier reads.
        dropout: Probability of dropout.
    """
    block = Trunk(kind=trunk, dim=dim, num_heads=num_heads, hidden_dim=hidden_dim, dropout=dropout)
    expert = EXPERT_TYPES[task.type](
        task=task, trunk=block, dim=dim, pooling=pooling, dropout=dropout
    )
    for module in expert.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return expert
