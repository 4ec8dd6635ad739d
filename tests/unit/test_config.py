"""The config checks itself, and comes back from its dictionary."""

from __future__ import annotations

import json
import re
from dataclasses import FrozenInstanceError, asdict
from typing import Any

import pytest

from moe.config import (
    DataConfig,
    ExperimentConfig,
    MixingConfig,
    OptimizerConfig,
    TaskConfig,
    config_from_dict,
)
from moe.model_config import EncoderConfig, ExpertConfig, GateConfig, LossConfig, ModelConfig
from moe.types import InputError

TASK = TaskConfig(type="classifier", train="a.csv")


def task(**changes: Any) -> TaskConfig:
    return TaskConfig(**{"type": "classifier", "train": "a.csv", **changes})


def experiment(**changes: Any) -> ExperimentConfig:
    return ExperimentConfig(**{"tasks": {"a": TASK}, **changes})


@pytest.mark.parametrize(("build", "values", "message"), [
    (EncoderConfig, {"dropout": 1.0}, "model.encoder.dropout must be in [0, 0.99], got 1.0"),
    (EncoderConfig, {"attention_dropout": -0.1}, "_dropout must be in [0, 0.99], got -0.1"),
    (EncoderConfig, {"freeze": -1}, "model.encoder.freeze must be at least 0, got -1"),
    (GateConfig, {"temperature": 0.0}, "model.gate.temperature must be positive, got 0.0"),
    (GateConfig, {"noise": -1.0}, "model.gate.noise must be at least 0, got -1.0"),
    (GateConfig, {"width": 0}, "model.gate.width must be at least 1, got 0"),
    (GateConfig, {"top_k": 0}, "model.gate.top_k must be at least 1, got 0"),
    (GateConfig, {"train_top_k": 0}, "model.gate.train_top_k must be at least 1, got 0"),
    (GateConfig, {"multi_task_threshold": 0.0}, "must be in (0, 1) or null, got 0.0"),
    (GateConfig, {"multi_task_threshold": 1.0}, "must be in (0, 1) or null, got 1.0"),
    (ExpertConfig, {"dropout": 1.5}, "model.expert.dropout must be in [0, 0.99], got 1.5"),
    (ExpertConfig, {"start": "encoder", "trunk": "ffn"}, "model.expert.start is 'encoder', a"),
    (LossConfig, {"routing": -1.0}, "model.loss.routing must be at least 0, got -1.0"),
    (LossConfig, {"switch": -1.0}, "model.loss.switch must be at least 0, got -1.0"),
    (LossConfig, {"prior": -1.0}, "model.loss.prior must be at least 0, got -1.0"),
    (LossConfig, {"bias_rate": -1.0}, "model.loss.bias_rate must be at least 0, got -1.0"),
    (LossConfig, {"z": -1.0}, "model.loss.z must be at least 0, got -1.0"),
    (task, {"experts": 0}, "tasks.*.experts must be at least 1, got 0"),
    (task, {"weight": -0.5}, "tasks.*.weight must be at least 0, got -0.5"),
    (task, {"out_of_scope_recall": 1.1}, "out_of_scope_recall must be in [0, 1], got 1.1"),
    (task, {"type": "span", "labels": ["x"]},
     "labels is for classifiers and taggers, got ['x'] for a span task"),
    (task, {"type": "tagger", "out_of_scope": "oos"},
     "tasks.*.out_of_scope is for classifiers, got 'oos' for a tagger task"),
    (MixingConfig, {"temperature": 0.5}, "data.mixing.temperature must be at least 1, got 0.5"),
    (MixingConfig, {"kind": "fixed"}, "goes with kind fixed, got kind fixed and None"),
    (MixingConfig, {"shares": {"a": 1.0}}, "got kind temperature and {'a': 1.0}"),
    (MixingConfig, {"kind": "fixed", "shares": {"a": 0.0}}, "must be positive, got {'a': 0.0}"),
    (DataConfig, {"batch_size": 0}, "data.batch_size must be at least 1, got 0"),
    (DataConfig, {"max_length": 15}, "data.max_length must be at least 16, got 15"),
    (DataConfig, {"max_length": 64, "stride": 64}, "must be below max_length 64, got 64"),
    (DataConfig, {"stride": -1}, "data.stride must be at least 0, got -1"),
    (DataConfig, {"max_tokens": 383}, "must hold one window of 384, got 383"),
    (DataConfig, {"attach_context": 1.1}, "data.attach_context must be in [0, 1], got 1.1"),
    (DataConfig, {"noise": -0.1}, "data.noise must be in [0, 1], got -0.1"),
    (DataConfig, {"max_padding": 1.0}, "data.max_padding must be in [0, 0.99], got 1.0"),
    (DataConfig, {"workers": -1}, "data.workers must be at least 0, got -1"),
    (OptimizerConfig, {"encoder_lr": -1.0}, "optimizer.encoder_lr must be at least 0, got -1"),
    (OptimizerConfig, {"expert_lr": -1.0}, "optimizer.expert_lr must be at least 0, got -1"),
    (OptimizerConfig, {"gate_lr": -1.0}, "optimizer.gate_lr must be at least 0, got -1"),
    (OptimizerConfig, {"weight_decay": -1.0}, "weight_decay must be at least 0, got -1"),
    (OptimizerConfig, {"gradient_clip": -1.0}, "gradient_clip must be at least 0, got -1"),
    (OptimizerConfig, {"warmup": 1.5}, "optimizer.warmup must be in [0, 1], got 1.5"),
    (OptimizerConfig, {"average": 1.5}, "optimizer.average must be in [0, 1], got 1.5"),
    (experiment, {"tasks": {}}, "tasks must name at least one task, got {}"),
    # A name is part of a module's name, which can have no dot.
    (experiment, {"tasks": {"my.topic": TASK}}, "'my.topic' must be letters, digits and"),
    (experiment, {"data": DataConfig(tasks=["b"])}, "no task 'b'; the config has ['a']"),
    (experiment, {"data": DataConfig(tasks=[])}, "must name a task or be null, got []"),
    (experiment, {"checkpoint_every": 0}, "checkpoint_every must be at least 1, got 0"),
    (experiment, {"patience": 0}, "patience must be at least 1, got 0"),
    (experiment, {"patience": 2, "optimizer": OptimizerConfig(average=0.5)},
     "patience is 2 and optimizer.average 0.5: a run that stops early has no mean"),
])
def test_a_wrong_value_is_named(build: Any, values: dict, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        build(**values)


@pytest.mark.parametrize(("build", "values"), [
    (EncoderConfig, {"dropout": 0.0, "attention_dropout": 0.0, "freeze": 0}),
    (EncoderConfig, {"freeze": "all"}),
    (GateConfig, {"noise": 0.0, "width": 1, "top_k": 1, "train_top_k": 1}),
    (GateConfig, {"multi_task_threshold": 0.01}),
    (LossConfig, dict.fromkeys(("routing", "switch", "prior", "bias_rate", "z"), 0.0)),
    (task, {"experts": 1, "weight": 0.0, "out_of_scope_recall": 0.0}),
    (task, {"out_of_scope_recall": 1.0, "labels": ["x", "y"]}),
    (MixingConfig, {"kind": "fixed", "shares": {"a": 0.1}}),
    (MixingConfig, {"temperature": 1}),
    (DataConfig, {"max_length": 16, "stride": 15, "max_tokens": 16, "batch_size": 1}),
    (DataConfig, {"attach_context": 1, "noise": 1, "max_padding": 0.0, "workers": 0}),
    (OptimizerConfig, {"warmup": 1.0, "gradient_clip": 0.0, "encoder_lr": 0.0}),
    (OptimizerConfig, {"average": 1.0}),
    (experiment, {"checkpoint_every": 1, "patience": 1, "data": DataConfig(tasks=["a"])}),
])
def test_values_at_the_edge_are_fine(build: Any, values: dict) -> None:
    config = build(**values)
    assert all(getattr(config, name) == value for name, value in values.items())


def test_frozen_and_keyword_only() -> None:
    with pytest.raises(FrozenInstanceError):
        EncoderConfig().dropout = 0.5  # type: ignore[misc]
    with pytest.raises(TypeError):
        EncoderConfig("minilm-l6")  # type: ignore[misc]


def test_selected_tasks_keep_the_order_of_the_config() -> None:
    tasks = {name: task(train=name) for name in "abc"}
    assert list(experiment(tasks=tasks).selected_tasks) == ["a", "b", "c"]
    config = experiment(tasks=tasks, data=DataConfig(tasks=["c", "a"]))
    assert config.selected_tasks == {"a": tasks["a"], "c": tasks["c"]}


# --- dictionary -------------------------------------------------------------------------------


def unusual() -> ExperimentConfig:
    """Every part has a value that is not its default."""
    return ExperimentConfig(
        tasks={
            "a": task(labels=["x", "y"], out_of_scope="oos", experts=3, weight=0.5),
            "b": TaskConfig(type="span", train="b.json", validation="c.json", context="passage"),
        },
        model=ModelConfig(
            encoder=EncoderConfig(name="folder", freeze=2),
            pooling="first",
            gate=GateConfig(kind="linear", train_top_k=3, multi_task_threshold=0.3),
            expert=ExpertConfig(trunk="ffn"),
            loss=LossConfig(bias_rate=0.05),
        ),
        data=DataConfig(tasks=["a"], mixing=MixingConfig(kind="fixed", shares={"a": 2.0})),
        optimizer=OptimizerConfig(schedule="cosine"),
        seed_everything=7,
        patience=2,
    )


@pytest.mark.parametrize("config", [experiment(), unusual()])
def test_round_trip_through_json(config: ExperimentConfig) -> None:
    assert config_from_dict(json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(("path", "message"), [
    ((), "ExperimentConfig: unknown key 'depth', known: ['checkpoint_every', 'data', "),
    (("model",), "ModelConfig: unknown key 'depth'"),
    (("model", "gate"), "GateConfig: unknown key 'depth'"),
    (("data", "mixing"), "MixingConfig: unknown key 'depth', known: ['kind', 'shares', 'temp"),
    (("tasks", "a"), "TaskConfig: unknown key 'depth'"),
])
def test_an_unknown_key_is_refused(path: tuple[str, ...], message: str) -> None:
    values = asdict(experiment())
    inner = values
    for name in path:
        inner = inner[name]
    inner["depth"] = 3
    with pytest.raises(InputError, match=re.escape(message)):
        config_from_dict(values)


def test_a_saved_config_is_checked_again() -> None:
    values = asdict(experiment())
    values["model"]["gate"]["top_k"] = 0
    with pytest.raises(InputError, match=r"model\.gate\.top_k must be at least 1, got 0"):
        config_from_dict(values)


def test_a_checkpoint_with_options_that_are_gone() -> None:
    values = asdict(experiment())
    values["optimizer"] |= {"branches": 2, "stem": 0.3}
    assert config_from_dict(values) == experiment()


def test_what_is_left_out_has_its_default() -> None:
    assert config_from_dict({"tasks": {"a": {"type": "classifier", "train": "a.csv"}}}) \
        == experiment()
