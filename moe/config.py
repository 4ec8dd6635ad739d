"""The one typed configuration: frozen, keyword-only, self-checking.

Everything a YAML file or the command line can say, except `--trainer.*`, which are the Lightning
Trainer's own arguments. Modules never see these classes; the `build_*` functions take them apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from math import inf
from typing import Any, Literal, get_type_hints

from moe.types import ExpertType, InputError


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def _check_range(section: str, config: object, names: str, low: float, high: float = inf) -> None:
    """Every number of `names` (separated by spaces) that is set lies in [low, high]."""
    for name in names.split():
        value = getattr(config, name)
        rule = f"at least {low:g}" if high == inf else f"in [{low:g}, {high:g}]"
        if value is not None:
            _check(low <= value <= high, f"{section}.{name} must be {rule}, got {value}")


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The shared DistilBERT.

    Attributes:
        name: `minilm-l6` (packaged, extra `[quickstart]`), a local folder, or a hub name.
        freeze: `none`, `embeddings`, `all`, or a number n: embeddings and the first n layers.
        dropout: Probability of dropout on embeddings and sub-layer outputs.
        attention_dropout: Probability of dropout on attention weights. Above 0, PyTorch leaves
            its fused attention on a CPU (1.5x slower at 192 tokens, `docs/results.md`).
    """

    name: str = "minilm-l6"
    freeze: Literal["none", "embeddings", "all"] | int = "none"
    dropout: float = 0.1
    attention_dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_range("model.encoder", self, "dropout attention_dropout", 0, 0.99)
        if isinstance(self.freeze, int):
            _check_range("model.encoder", self, "freeze", 0)


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """The gate: scores from the pooled embedding, and how many experts they choose.

    Attributes:
        kind: `cosine` to one prototype per expert, or `linear` scores.
        width: Width of the projection before the prototypes (`cosine` only).
        temperature: Divides the scores; cosine scores lie in [-1, 1], so 0.1 gives logits up to 10.
        noise: Standard deviation of Gaussian noise on the logits, in training only.
        top_k: Experts per chosen task at inference.
        train_top_k: Experts per task in training; None is min(2, experts of the task).
        multi_task_threshold: A task is also chosen when its mass is above this; None never.
        update_encoder: Whether the routing loss reaches the encoder.
    """

    kind: Literal["cosine", "linear"] = "cosine"
    width: int = 128
    temperature: float = 0.1
    noise: float = 0.0
    top_k: int = 1
    train_top_k: int | None = None
    multi_task_threshold: float | None = None
    update_encoder: bool = True

    def __post_init__(self) -> None:
        _check(
            self.temperature > 0, f"model.gate.temperature must be positive, got {self.temperature}"
        )
        _check_range("model.gate", self, "noise", 0)
        _check_range("model.gate", self, "width top_k train_top_k", 1)
        threshold = self.multi_task_threshold
        _check(
            threshold is None or 0 < threshold < 1,
            f"model.gate.multi_task_threshold must be in (0, 1) or null, got {threshold}",
        )


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """The shape of every expert.

    Attributes:
        trunk: The expert's own residual block over the token states: `none`, `ffn`, or
            `transformer` (attention and feed-forward, one DistilBERT layer).
        pooling: What a classifier reads: the `first` token or the `mean`.
        dropout: Probability of dropout in trunk and head.
    """

    trunk: Literal["none", "ffn", "transformer"] = "transformer"
    pooling: Literal["first", "mean"] = "first"
    dropout: float = 0.1

    def __post_init__(self) -> None:
        _check_range("model.expert", self, "dropout", 0, 0.99)


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
    bias_rate: float = 0.0
    z: float = 1e-3

    def __post_init__(self) -> None:
        _check_range("model.loss", self, "routing switch prior bias_rate z", 0)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model: encoder, gate, experts, losses.

    Attributes:
        pooling: What the gate reads: the masked `mean` of the token states, or the `first`.
    """

    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    pooling: Literal["mean", "first"] = "mean"
    gate: GateConfig = field(default_factory=GateConfig)
    expert: ExpertConfig = field(default_factory=ExpertConfig)
    loss: LossConfig = field(default_factory=LossConfig)


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task: where its rows are and how many experts share it.

    Attributes:
        type: `classifier` (one label per text) or `span` (a piece of the context).
        train: SOURCE of the training rows (`docs/data.md`).
        validation: SOURCE of the validation rows; None splits off 10 % of the training rows,
            seeded and grouped by text.
        text: Column of the text; None finds it.
        context: Column of the passage; None finds it.
        label: Column of the label; None finds it.
        labels: Class names; None takes them from the training rows, sorted.
        out_of_scope: Label of the rows that belong to no class, or None.
        out_of_scope_recall: Share of out-of-scope validation rows that the fitted threshold
            rejects, in [0, 1].
        experts: Experts that share the task.
        weight: Factor on the task's answer loss.
    """

    type: ExpertType
    train: str
    validation: str | None = None
    text: str | None = None
    context: str | None = None
    label: str | None = None
    labels: list[str] | None = None
    out_of_scope: str | None = None
    out_of_scope_recall: float = 0.75
    experts: int = 1
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_range("tasks.*", self, "experts", 1)
        _check_range("tasks.*", self, "weight", 0)
        _check_range("tasks.*", self, "out_of_scope_recall", 0, 1)
        _check(
            self.type == "classifier" or self.labels is None,
            f"tasks.*.labels is for classifiers, got {self.labels} for a {self.type} task",
        )


@dataclass(frozen=True, kw_only=True)
class MixingConfig:
    """How much of each task an optimizer step holds.

    Attributes:
        kind: `proportional` to the windows of its rows, `uniform`, `temperature` (that to the power
            1/temperature), `annealed` (from proportional at the first step to uniform at the
            last), or `fixed`.
        temperature: Of kind `temperature`; 1 is proportional, large is uniform.
        shares: Of kind `fixed`: a positive number per task, normalised to sum 1.
    """

    kind: Literal["proportional", "uniform", "temperature", "annealed", "fixed"] = "temperature"
    temperature: float = 2.0
    shares: dict[str, float] | None = None

    def __post_init__(self) -> None:
        _check_range("data.mixing", self, "temperature", 1)
        _check(
            (self.kind == "fixed") == (self.shares is not None),
            f"data.mixing.shares goes with kind fixed, got kind {self.kind} and {self.shares}: "
            "set the kind, or --data.mixing.shares null",
        )
        _check(
            all(share > 0 for share in (self.shares or {}).values()),
            f"data.mixing.shares must be positive, got {self.shares}",
        )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Rows, windows and micro-batches.

    Attributes:
        root: Folder of relative sources.
        tasks: Names of the tasks to train, a subset of `tasks`; None trains all.
        cache: Folder of the tokenized rows.
        max_length: Longest window in tokens, special tokens included.
        stride: Context tokens that neighbouring windows share.
        batch_size: Rows of an optimizer step, over all tasks.
        max_tokens: Most tokens of a micro-batch, padding included.
        max_padding: Most padding of a micro-batch, as a share of its tokens.
        mixing: How much of each task a step holds.
        attach_context: Share of the classifier rows in training that get a foreign passage, so
            that the gate learns to read and not to look for a second segment.
        noise: Share of the training rows met with changed case, punctuation or a typo.
        workers: Processes that build batches; 0 builds them in the training process.
    """

    root: str = "."
    tasks: list[str] | None = None
    cache: str = ".cache"
    max_length: int = 384
    stride: int = 128
    batch_size: int = 128
    max_tokens: int = 8192
    max_padding: float = 0.05
    mixing: MixingConfig = field(default_factory=MixingConfig)
    attach_context: float = 0.1
    noise: float = 0.1
    workers: int = 0

    def __post_init__(self) -> None:
        _check_range("data", self, "batch_size", 1)
        _check_range("data", self, "workers stride", 0)
        _check_range("data", self, "max_length", 16)
        _check_range("data", self, "attach_context noise", 0, 1)
        _check_range("data", self, "max_padding", 0, 0.99)
        _check(
            self.stride < self.max_length,
            f"data.stride must be below max_length {self.max_length}, got {self.stride}",
        )
        _check(
            self.max_tokens >= self.max_length,
            f"data.max_tokens must hold one window of {self.max_length}, got {self.max_tokens}",
        )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with one learning rate per part, linear warm-up and decay.

    Attributes:
        encoder_lr: Peak learning rate of the encoder.
        expert_lr: Peak learning rate of trunks and heads.
        gate_lr: Peak learning rate of the gate.
        weight_decay: On matrices; biases, norms and embeddings have none.
        warmup: Share of the optimizer steps in which the rates rise from 0.
        schedule: After that, `linear` or `cosine` decay to 0, or `constant`.
        gradient_clip: Largest norm of the whole gradient; 0 does not clip.
    """

    encoder_lr: float = 1e-4
    expert_lr: float = 3e-4
    gate_lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.06
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    gradient_clip: float = 1.0

    def __post_init__(self) -> None:
        names = "encoder_lr expert_lr gate_lr weight_decay gradient_clip"
        _check_range("optimizer", self, names, 0)
        _check_range("optimizer", self, "warmup", 0, 1)


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """All of one training run.

    Attributes:
        tasks: The tasks by name.
        seed_everything: Seed of weights, order, noise and dropout.
        checkpoint_every: Optimizer steps between writes of `last.ckpt`.
        patience: Validations without a better joint score before training stops; None never stops.
    """

    tasks: dict[str, TaskConfig]
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    seed_everything: int = 0
    checkpoint_every: int = 20
    patience: int | None = None

    def __post_init__(self) -> None:
        _check(len(self.tasks) > 0, "tasks must name at least one task, got {}")
        for name in self.tasks:
            _check(
                name.isidentifier(),
                f"tasks: the name {name!r} must be letters, digits and underscores",
            )
        for name in self.data.tasks or ():
            _check(
                name in self.tasks,
                f"data.tasks: no task {name!r}; the config has {sorted(self.tasks)}",
            )
        _check(self.data.tasks != [], "data.tasks must name a task or be null, got []")
        _check_range("config", self, "checkpoint_every patience", 1)

    @property
    def selected_tasks(self) -> dict[str, TaskConfig]:
        """The tasks that this run trains, in the order of `tasks`."""
        chosen = self.data.tasks
        return {k: v for k, v in self.tasks.items() if chosen is None or k in chosen}


def config_from_dict(values: dict[str, Any]) -> ExperimentConfig:
    """The config that `dataclasses.asdict` described, as saved in a checkpoint."""

    def build(cls: Any, values: dict[str, Any]) -> Any:
        types = get_type_hints(cls)
        known = {f.name for f in fields(cls)}
        for name in values:
            _check(name in known, f"{cls.__name__}: unknown key {name!r}, known: {sorted(known)}")
        return cls(
            **{
                name: build(types[name], value) if is_dataclass(types[name]) else value
                for name, value in values.items()
            }
        )

    tasks = {name: build(TaskConfig, task) for name, task in values["tasks"].items()}
    config: ExperimentConfig = build(ExperimentConfig, {**values, "tasks": tasks})
    return config
