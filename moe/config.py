"""The one typed configuration: frozen, keyword-only, self-checking.

Everything a YAML file or the command line can say, except `--trainer.*`, which are the Lightning
Trainer's own arguments. Modules never see these classes; the `build_*` functions take them apart.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_type_hints

from moe.model_config import ModelConfig, check, check_range
from moe.types import ExpertType


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task: where its rows are and how many experts share it.

    Attributes:
        type: `classifier` (one label per text), `span` (a piece of the context) or `tagger`
            (labelled spans of the text).
        train: SOURCE of the training rows (`docs/data.md`).
        validation: SOURCE of the validation rows; None splits off 10 % of the training rows,
            seeded and grouped by text.
        text: Column of the text, of a tagger of its words; None finds it.
        context: Column of the passage; None finds it for a span task, and is none for others.
        label: Column of the label, of a tagger of the words' tags; None finds it.
        labels: Class names, of a tagger the types of its spans; None takes them from the training
            rows, sorted.
        out_of_scope: Label of the rows that belong to no class, or None.
        out_of_scope_recall: Share of out-of-scope validation rows that the fitted threshold
            rejects, in [0, 1].
        min_words: Fewest words of a training row's text; shorter rows are left out. Fragments that
            could belong to any task teach the gate to send it all that is short.
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
    min_words: int = 1
    experts: int = 1
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_range("tasks.*", self, "experts min_words", 1)
        check_range("tasks.*", self, "weight", 0)
        check_range("tasks.*", self, "out_of_scope_recall", 0, 1)
        check(
            self.type != "span" or self.labels is None,
            f"tasks.*.labels is for classifiers and taggers, got {self.labels} for a {self.type} "
            "task",
        )
        check(
            self.type == "classifier" or self.out_of_scope is None,
            f"tasks.*.out_of_scope is for classifiers, got {self.out_of_scope!r} for a "
            f"{self.type} task",
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
        check_range("data.mixing", self, "temperature", 1)
        check(
            (self.kind == "fixed") == (self.shares is not None),
            f"data.mixing.shares goes with kind fixed, got kind {self.kind} and {self.shares}: "
            "set the kind, or --data.mixing.shares null",
        )
        check(
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
        batch_size: Rows of an optimizer step, over all tasks and all processes.
        max_tokens: Most tokens that a process computes at once, padding included: of a
            micro-batch, and of the micro-batches that training encodes together.
        max_padding: Most padding of a micro-batch, as a share of its tokens.
        mixing: How much of each task a step holds.
        attach_context: Share of the rows without a passage in training that get a foreign one, so
            that the gate learns to read and not to look for a second segment.
        routing: SOURCE of routing rows, which say where a request belongs and may hold answers
            (`docs/data.md`); None without.
        routing_share: Routing rows of a step as a share of `batch_size`, on top of it.
        noise: Share of the training rows met with changed case, punctuation or a typo.
        workers: Processes that build the batches of a training process; 0 builds them in it.
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
    routing: str | None = None
    routing_share: float = 0.05
    noise: float = 0.1
    workers: int = 0

    def __post_init__(self) -> None:
        check_range("data", self, "batch_size", 1)
        check_range("data", self, "workers stride", 0)
        check_range("data", self, "max_length", 16)
        check_range("data", self, "attach_context noise routing_share", 0, 1)
        check_range("data", self, "max_padding", 0, 0.99)
        check(
            self.stride < self.max_length,
            f"data.stride must be below max_length {self.max_length}, got {self.stride}",
        )
        check(
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
        average: Share of the optimizer steps, the last ones, whose mean weights are the model
            (`moe/averaging.py`); 0 takes the weights after the last one. For `constant` rates.
        gradient_clip: Largest norm of the whole gradient; 0 does not clip.
        max_skipped: Steps in a row without a finite loss and gradient that end training; each is
            skipped.
    """

    encoder_lr: float = 1e-4
    expert_lr: float = 3e-4
    gate_lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.06
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    average: float = 0.0
    gradient_clip: float = 1.0
    max_skipped: int = 5

    def __post_init__(self) -> None:
        names = "encoder_lr expert_lr gate_lr weight_decay gradient_clip"
        check_range("optimizer", self, names, 0)
        check_range("optimizer", self, "warmup average", 0, 1)
        check_range("optimizer", self, "max_skipped", 1)


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
        check(len(self.tasks) > 0, "tasks must name at least one task, got {}")
        for name in self.tasks:
            check(
                re.fullmatch(r"\w+", name) is not None,
                f"tasks: the name {name!r} must be letters, digits and underscores",
            )
        for name in self.data.tasks or ():
            check(
                name in self.tasks,
                f"data.tasks: no task {name!r}; the config has {sorted(self.tasks)}",
            )
        check(self.data.tasks != [], "data.tasks must name a task or be null, got []")
        check_range("config", self, "checkpoint_every patience", 1)
        check(
            self.patience is None or self.optimizer.average == 0,
            f"patience is {self.patience} and optimizer.average {self.optimizer.average:g}: a run "
            "that stops early has no mean of its last part; set patience to null, or average to 0",
        )

    @property
    def selected_tasks(self) -> dict[str, TaskConfig]:
        """The tasks that this run trains, in the order of `tasks`."""
        chosen = self.data.tasks
        return {k: v for k, v in self.tasks.items() if chosen is None or k in chosen}


_GONE = {"branches", "stem"}  # of `optimizer`: older checkpoints hold them, no answer needs them


def config_from_dict(values: dict[str, Any]) -> ExperimentConfig:
    """The config that `dataclasses.asdict` described, as saved in a checkpoint."""

    def build(cls: Any, values: dict[str, Any]) -> Any:
        types = get_type_hints(cls)
        known = {f.name for f in fields(cls)}
        for name in values:
            check(name in known, f"{cls.__name__}: unknown key {name!r}, known: {sorted(known)}")
        return cls(
            **{
                name: build(types[name], value) if is_dataclass(types[name]) else value
                for name, value in values.items()
            }
        )

    tasks = {name: build(TaskConfig, task) for name, task in values["tasks"].items()}
    optimizer = {k: v for k, v in values.get("optimizer", {}).items() if k not in _GONE}
    every = {**values, "tasks": tasks, "optimizer": optimizer}
    config: ExperimentConfig = build(ExperimentConfig, every)
    return config
