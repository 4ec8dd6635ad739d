"""The model's part of the configuration: encoder, gate, experts, losses; and the range checks."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Literal

from moe.types import InputError, Pooling


def check(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def check_range(section: str, config: object, names: str, low: float, high: float = inf) -> None:
    """Every number of `names` (separated by spaces) that is set lies in [low, high]."""
    for name in names.split():
        value = getattr(config, name)
        rule = f"at least {low:g}" if high == inf else f"in [{low:g}, {high:g}]"
        if value is not None:
            check(low <= value <= high, f"{section}.{name} must be {rule}, got {value}")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The shared DistilBERT.

    Attributes:
        name: `minilm-l6` (packaged, extra `[quickstart]`), a local folder, or a hub name.
        layers: How many of its layers are shared, the first ones; None is all.
        freeze: `none`, `embeddings`, `all`, or a number n: embeddings and the first n layers.
        dropout: Probability of dropout on embeddings and sub-layer outputs.
        attention_dropout: Probability of dropout on attention weights. Above 0, PyTorch leaves
            its fused attention on a CPU (`docs/results.md`).
        compile: Whether `torch.compile` fuses the feed-forward blocks in training; needs a C++
            compiler.
    """

    name: str = "minilm-l6"
    layers: int | None = None
    freeze: Literal["none", "embeddings", "all"] | int = "none"
    dropout: float = 0.1
    attention_dropout: float = 0.0
    compile: bool = False

    def __post_init__(self) -> None:
        check_range("model.encoder", self, "dropout attention_dropout", 0, 0.99)
        check_range("model.encoder", self, "layers", 1)
        if isinstance(self.freeze, int):
            check_range("model.encoder", self, "freeze", 0)


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """The gate: scores from the pooled embedding, and how many experts they choose.

    Attributes:
        kind: `cosine` to one prototype per expert, or `linear` scores.
        width: Width of the projection before the prototypes (`cosine` only).
        hidden: Width of a GELU layer before the projection (`cosine` only); 0 is none.
        temperature: Divides the scores; cosine scores lie in [-1, 1], so 0.1 gives logits up to 10.
        noise: Standard deviation of Gaussian noise on the logits, in training only.
        top_k: Experts per chosen task at inference.
        train_top_k: Experts per task in training; None is min(2, experts of the task).
        multi_task_threshold: At inference a task is also chosen when its mass is above this; None
            takes what was fitted on routing rows that need two answers, and never without them.
        update_encoder: Whether the routing loss reaches the encoder.
    """

    kind: Literal["cosine", "linear"] = "cosine"
    width: int = 128
    hidden: int = 256
    temperature: float = 0.1
    noise: float = 0.0
    top_k: int = 1
    train_top_k: int | None = None
    multi_task_threshold: float | None = None
    update_encoder: bool = True

    def __post_init__(self) -> None:
        check(
            self.temperature > 0, f"model.gate.temperature must be positive, got {self.temperature}"
        )
        check_range("model.gate", self, "noise hidden", 0)
        check_range("model.gate", self, "width top_k train_top_k", 1)
        threshold = self.multi_task_threshold
        check(
            threshold is None or 0 < threshold < 1,
            f"model.gate.multi_task_threshold must be in (0, 1) or null, got {threshold}",
        )


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """The shape of every expert.

    Attributes:
        trunk: The expert's own residual block over the token states: `none`, `ffn`, or
            `transformer` (attention and feed-forward, one DistilBERT layer).
        start: First weights of a `transformer` trunk: `random`, or a copy of the `encoder`'s layer
            that follows what it reads, or else of its last one. A narrower trunk keeps the neurons
            with the largest weights.
        pooling: What a classifier reads: the `first` token or the `mean`.
        dropout: Probability of dropout in trunk and head.
    """

    trunk: Literal["none", "ffn", "transformer"] = "transformer"
    start: Literal["random", "encoder"] = "random"
    pooling: Literal["first", "mean"] = "first"
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_range("model.expert", self, "dropout", 0, 0.99)
        check(
            self.start == "random" or self.trunk == "transformer",
            f"model.expert.start is 'encoder', a layer to copy: the trunk {self.trunk!r} is none; "
            "set model.expert.trunk to transformer, or start to random",
        )


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Coefficients of the joint loss (`moe/losses.py`); 0 switches a term off.

    Attributes:
        routing: Of `-log G_t`, the mass of the row's own task.
        switch: Of the balance within each task, 1.0 = balanced.
        prior: Of the divergence between the step's task share and the gate's.
        bias_rate: Step of the loss-free balance, in logits per optimizer step; 0 is off.
        z: Of the squared log-normaliser of the gate.
    """

    routing: float = 1.0
    switch: float = 0.05
    prior: float = 0.01
    bias_rate: float = 0.02
    z: float = 1e-3

    def __post_init__(self) -> None:
        check_range("model.loss", self, "routing switch prior bias_rate z", 0)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model: encoder, gate, experts, losses.

    Attributes:
        pooling: What the gate reads: the `first` token; the `mean` of the token states; that over
            the `text` alone, which the passage reaches by attention; or `both` means.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    pooling: Pooling = "both"
    gate: GateConfig = field(default_factory=GateConfig)
    expert: ExpertConfig = field(default_factory=ExpertConfig)
    loss: LossConfig = field(default_factory=LossConfig)
