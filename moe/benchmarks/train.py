"""Benchmark `train`: examples per second of our training against Hugging Face's Trainer.

Both sides train on rows of the same files in the same proportion of tasks. Ours trains one model;
theirs three, one after another. Every side of every round is a process of its own.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from moe.allocator import keep_freed_memory
from moe.benchmarks.experts import trainer_of
from moe.benchmarks.models import (
    SHAPES,
    built_bundle,
    library_tokenizer,
    plain_classifier,
    plain_reader,
)
from moe.benchmarks.pairs import Benchmark, Case, Options
from moe.benchmarks.processes import run_side
from moe.build import build_model
from moe.config import ExperimentConfig, MixingConfig
from moe.data.formats import Example
from moe.data.module import StepDataset, build_planner
from moe.data.prepare import build_tables, read_task
from moe.data.windows import TextTokenizer
from moe.encoder import build_encoder
from moe.precision import pick_precision
from moe.pretrained import MINILM, resolve_folder
from moe.types import InputError

SHARES = {"sentiment": 80.0, "qa": 11.0, "intent": 37.0}  # much like configs/local.yaml
MAX_LENGTH = 384
WARM_UP = 2  # steps that are not timed: the first of each size is slower
ROWS = 3200  # of each task that the Trainer gets; grouping by length looks at 50 batches at once


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the Trainer is used.

    Attributes:
        batch_size: Rows of a step.
        steps: That are timed.
        padding: `max_length`, or to the longest of a batch.
        arguments: Of `TrainingArguments`; the others are the library's defaults.
    """

    batch_size: int
    steps: int
    padding: bool | str
    arguments: dict[str, Any]


def recipes() -> dict[str, Recipe]:
    """The usual tutorial, and the best that the Trainer can do."""
    bf16 = pick_precision({"accelerator": "cpu"}) == "bf16-mixed"
    return {
        "tutorial": Recipe(batch_size=16, steps=2, padding="max_length", arguments={}),
        "best-trainer": Recipe(
            batch_size=32,
            steps=8,
            padding=True,
            arguments={
                "bf16": bf16,
                "optim": "adamw_torch_fused",
                "train_sampling_strategy": "group_by_length",
            },
        ),
    }


FILES = {
    "sentiment": ("sst2/train.tsv", "sst2/validation.tsv"),
    "qa": ("squadshifts/train.json", "squadshifts/validation.json"),
    "intent": ("clinc150/train_val.json", "clinc150/train_val.json"),
}


def mix(data: str | None, cache: str) -> ExperimentConfig:
    """The rows and steps of `configs/local.yaml`, on its files or on the packaged samples.

    Without attached passages and noise, which the other side has not.

    Args:
        data: Folder of the files, or None.
        cache: Folder of tokenized rows.
    """
    config = built_bundle("tiny", trunk="transformer").config
    tasks = {}
    for name, task in config.tasks.items():
        train, validation = FILES[name] if data else (f"sample:{name}", f"sample:{name}")
        tasks[name] = replace(task, train=train, validation=validation)
    return replace(
        config,
        tasks=tasks,
        data=replace(
            config.data,
            root=data or "",
            cache=cache,
            max_length=MAX_LENGTH,
            batch_size=128,
            max_tokens=4096,
            mixing=MixingConfig(kind="fixed", shares=SHARES),
            attach_context=0.0,
            noise=0.0,
        ),
    )


# --- ours -------------------------------------------------------------------------------------


def planned(config: ExperimentConfig, steps: int) -> tuple[StepDataset, Any]:
    """The steps of our training, and the tasks."""
    tokenizer = TextTokenizer.from_pretrained(resolve_folder(MINILM))
    tables, _ = build_tables(config.tasks, config.data, tokenizer, seed=0)
    planner = build_planner(tables, config.data, total_steps=max(steps, 50), seed=0)
    return StepDataset(tables, planner, tokenizer), tables.specs


def ours(config: ExperimentConfig, shape: str, steps: int) -> float:
    """Examples per second of our training, with the default trunk."""
    keep_freed_memory()
    dataset, specs = planned(config, WARM_UP + steps)
    torch.manual_seed(0)
    encoder = build_encoder({**SHAPES[shape], "attention_dropout": 0.0})
    step = trainer_of(build_model(config.model, specs, encoder), config)
    bf16 = pick_precision({"accelerator": "cpu"}) == "bf16-mixed"
    rows, seconds = 0, 0.0
    for position in range(WARM_UP + steps):
        start = time.perf_counter()
        micro_batches = dataset[position].micro_batches
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            step(micro_batches)
        if position >= WARM_UP:
            seconds += time.perf_counter() - start
            rows += sum(len(batch) for batch in micro_batches)
    return rows / seconds


def real_tokens(config: ExperimentConfig, steps: int = 50) -> float:
    """Real tokens as a share of all that our training computes."""
    dataset, _ = planned(config, steps)
    batches = [b for position in range(steps) for b in dataset[position].micro_batches]
    real = sum(int(batch.attention_mask.sum()) for batch in batches)
    return real / sum(batch.input_ids.numel() for batch in batches)


# --- theirs -----------------------------------------------------------------------------------


def encoded(
    examples: Sequence[Example], is_span: bool, tokenizer: Any, padding: bool | str
) -> list[dict[str, Any]]:
    """Rows as the Trainer takes them: ids, mask, and a label or a span, whose values cost nothing.

    Padded only with `max_length`; else that is the collator's work.
    """
    cut = {"max_length": MAX_LENGTH, "padding": padding == "max_length" and "max_length"}
    texts = [example.text for example in examples]
    if is_span:
        contexts = [example.context or "" for example in examples]
        inputs = tokenizer(texts, contexts, truncation="longest_first", **cut)
        answer = {"start_positions": 0, "end_positions": 0}
    else:
        inputs = tokenizer(texts, truncation=True, **cut)
        answer = {"labels": 0}
    return [
        {"input_ids": ids, "attention_mask": mask, **answer}
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]


def seconds_per_row(
    model: nn.Module, rows: list[dict[str, Any]], recipe: Recipe, tokenizer: Any, folder: str
) -> float:
    """Of the steps after the first `WARM_UP`, loop and collator of the Trainer included.

    Raises:
        InputError: `accelerate`, which the Trainer needs, is not installed.
    """
    if find_spec("accelerate") is None:
        raise InputError(
            "benchmark train: Hugging Face's Trainer needs accelerate: "
            "pip install -c constraints.txt -e '.[benchmark]'"
        )
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    arguments = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=recipe.batch_size,
        max_steps=WARM_UP + recipe.steps,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **recipe.arguments,
    )
    collator = DataCollatorWithPadding(tokenizer) if recipe.padding is True else None
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,  # type: ignore[arg-type]
        data_collator=collator,
        callbacks=[Clock()],
    )
    with contextlib.redirect_stdout(io.StringIO()):  # its own report
        trainer.train()
    return (times[-1] - times[WARM_UP - 1]) / (recipe.steps * recipe.batch_size)


def theirs(config: ExperimentConfig, shape: str, recipe: Recipe, rows: int, folder: str) -> float:
    """Examples per second of three trainings in the proportion of `SHARES`."""
    tokenizer = library_tokenizer(TextTokenizer.from_pretrained(resolve_folder(MINILM)))
    seconds = 0.0
    for name, task in config.tasks.items():
        read = read_task(name, task, config.data.root, seed=0)
        order = np.random.default_rng(0).permutation(len(read.train))[:rows]
        examples = [read.train[number] for number in order]
        is_span = task.type == "span"
        model = (
            plain_reader(shape) if is_span else plain_classifier(shape, read.spec.num_classes)
        ).train()
        inputs = encoded(examples, is_span, tokenizer, recipe.padding)
        seconds += SHARES[name] * seconds_per_row(model, inputs, recipe, tokenizer, folder)
    return sum(SHARES.values()) / seconds


def side(recipe: str, data: str | None, threads: int, quick: bool, folder: str) -> float:
    """Examples per second of one side: `ours`, or a key of `recipes`."""
    torch.set_num_threads(threads)
    config, shape = mix(data, str(Path(folder, "cache"))), "tiny" if quick else MINILM
    if recipe == "ours":
        return ours(config, shape, 2 if quick else 12)
    chosen = recipes()[recipe]
    if quick:
        chosen = replace(chosen, batch_size=2, steps=1)
    return theirs(config, shape, chosen, 16 if quick else ROWS, folder)


def train(options: Options) -> Iterator[Case]:
    """Our training against the Trainer's two recipes."""
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "benchmark": "train",
            "data": options.data,
            "threads": options.threads,
            "quick": options.quick,
            "folder": folder,
        }
        config = mix(options.data, str(Path(folder, "cache")))
        share = round(real_tokens(config, 2 if options.quick else 50), 4)
        for recipe in recipes():
            yield Case(
                name=recipe,
                ours=partial(run_side, options.script, {**common, "recipe": "ours"}),
                baseline=partial(run_side, options.script, {**common, "recipe": recipe}),
                facts={"real_tokens": share},
            )


TRAIN = Benchmark(
    about="training steps of one model with three tasks, against Hugging Face's Trainer on three "
    "models: the tutorial's way (float32, padded to 384) and its best (bf16 where the processor "
    "has it, fused AdamW, batches of like length, padded to the longest)",
    cases=train,
    unit="examples/s",
    ratio="ours / baseline",
    better="above 1 ours is faster",
    side=side,
)
