"""From the config and the tasks to the modules of a mixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from transformers import DistilBertModel

from moe.encoder import early_layers, keep_layers, pooled_width
from moe.experts import Expert, build_expert
from moe.experts.trunk import copy_layer
from moe.gate import Gate
from moe.model import Mixture
from moe.model_config import ModelConfig
from moe.types import InputError, TaskSpec, expert_specs


def build_model(
    config: ModelConfig,
    tasks: Sequence[TaskSpec],
    encoder: DistilBertModel,
    gate_rows: int | None = None,
) -> Mixture:
    """Assembles the mixture around a loaded encoder; gate and experts are freshly initialised.

    Args:
        config: Of the model.
        tasks: What the experts answer.
        encoder: The shared DistilBERT; layers beyond `config.encoder.layers` are taken off it.
        gate_rows: Rows of the trained gate, where experts were added or removed since; None is
            one per expert.
    """
    shape = encoder.config
    experts_E = expert_specs(tasks)
    gate = Gate(
        dim=pooled_width(shape.dim, config.pooling),
        num_experts=len(experts_E) if gate_rows is None else gate_rows,
        kind=config.gate.kind,
        width=config.gate.width,
        hidden=config.gate.hidden,
        temperature=config.gate.temperature,
        noise=config.gate.noise,
        experts=experts_E,
        layer_dim=shape.dim,
    )
    experts = {
        name: build_task_expert(config, task, encoder)
        for task in tasks
        for name in task.expert_names
    }
    keep_layers(encoder, config.encoder.layers)
    count, early = encoder.config.n_layers, len(early_layers(encoder))
    for expert in experts_E:
        if any(brick.layers != early for brick in expert.bricks):
            raise InputError(f"the gate brick of {expert.name!r} does not read {early} layers")
    for task in tasks:
        if task.layer is not None and not 1 <= task.layer <= count:
            raise InputError(
                f"task {task.name!r} reads layer {task.layer} of an encoder of {count}"
            )
    return Mixture(
        encoder=encoder,
        gate=gate,
        experts=experts,
        tasks=tasks,
        pooling=config.pooling,
        top_k=config.gate.top_k,
        train_top_k=config.gate.train_top_k,
        multi_task_threshold=config.gate.multi_task_threshold,
        routing_reaches_encoder=config.gate.update_encoder,
    )


def build_task_expert(
    config: ModelConfig,
    task: TaskSpec,
    encoder: DistilBertModel,
    start: Literal["random", "encoder"] | None = None,
) -> Expert:
    """One freshly initialised expert of a task, of the shape that config and task give it.

    Args:
        config: Of the model.
        task: What it answers.
        encoder: The shared DistilBERT.
        start: See `ExpertConfig`, whose own is None.
    """
    shape = encoder.config
    expert = build_expert(
        task,
        dim=shape.dim,
        num_heads=shape.n_heads,
        hidden_dim=task.trunk_width or shape.hidden_dim,
        trunk=task.trunk or config.expert.trunk,
        pooling=config.expert.pooling,
        dropout=config.expert.dropout,
    )
    if (start or config.expert.start) == "encoder":
        layers: Any = encoder.transformer.layer
        read = task.layer or config.encoder.layers or len(layers)
        copy_layer(layers[min(read, len(layers) - 1)], expert.trunk)
    return expert
