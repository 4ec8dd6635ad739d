"""Benchmarks of a forward pass: `two-tasks`, `gate-overhead`, `int8`, `gpu`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from moe.benchmarks.calls import batch_of, encoder_alone, forward, named, random_rows, routed
from moe.benchmarks.models import (
    TrunkKind,
    built_bundle,
    built_model,
    bundle_of,
    graph_of,
    plain_classifier,
)
from moe.benchmarks.pairs import Benchmark, Case, Options, timed
from moe.pretrained import MINILM
from moe.types import InputError

BOTH = ("sentiment", "intent")
FASTER = "above 1 ours is faster"


def shape_of(options: Options) -> str:
    """MiniLM-L6's, or a tiny one."""
    return "tiny" if options.quick else MINILM


def two_tasks(options: Options) -> Iterator[Case]:
    """One text that needs sentiment and intent, 16 tokens."""
    shape, rows = shape_of(options), random_rows(1, 16)
    separate = [forward(plain_classifier(shape, classes), rows) for classes in (2, 151)]

    def baseline() -> None:
        for model in separate:
            model()

    trunks: dict[str, TrunkKind] = {"": "none", "-default-trunk": "transformer"}
    for name, trunk in trunks.items():
        ours = routed(built_model(shape, trunk=trunk), rows, *BOTH)
        yield timed(f"eager{name}", ours, baseline)
    for name, trunk in trunks.items():
        graph = graph_of(built_bundle(shape, trunk=trunk), options.threads)
        yield timed(f"best{name}", partial(graph.ask, rows, *BOTH), baseline, backend="ONNX int8")


def gate_overhead(options: Options) -> Iterator[Case]:
    """Gate, decision and the chosen expert without a trunk on top of the encoder."""
    model = built_model(shape_of(options), trunk="none")
    for count, length in ((1, 16), (32, 32)):
        rows = random_rows(count, length)
        ours = routed(model, rows)
        yield timed(f"{count}x{length}", ours, forward(model.encoder, rows))
        yield timed(f"{count}x{length}-own-encoder", ours, encoder_alone(model, rows))


def int8(options: Options) -> Iterator[Case]:
    """8-bit weights in ONNX Runtime against the same model in torch: gate and intent."""
    sizes = ((1, 16), (1, 128), (32, 32))
    bundles: dict[str, Callable[[], Any]] = {
        "": lambda: bundle_of(options.checkpoint, shape_of(options)),
        "base-": lambda: built_bundle(
            "tiny" if options.quick else "distilbert-base", trunk="transformer"
        ),
    }
    for prefix, bundle in bundles.items():
        made = bundle()
        task = made.model.tasks[-1].name
        graph = graph_of(made, options.threads)
        for count, length in sizes:
            rows = random_rows(count, length)
            yield timed(
                f"{prefix}{count}x{length}",
                partial(graph.ask, rows, task),
                routed(made.model, rows, task),
            )


def gpu(options: Options) -> Iterator[Case]:
    """Eager forward passes on the first CUDA device, in bfloat16."""
    if not torch.cuda.is_available():
        raise InputError("benchmark gpu: no CUDA device here; torch.cuda.is_available() is False")
    shape = "distilbert-base"

    def on_gpu(model: Any, inputs: Any) -> Callable[[], Any]:
        def call() -> None:
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
                model(**inputs)
            torch.cuda.synchronize()

        return call

    for count, length in ((1, 16), (32, 128)):
        rows = random_rows(count, length)
        library = {
            "input_ids": torch.from_numpy(rows.input_ids).cuda(),
            "attention_mask": torch.from_numpy(rows.attention_mask).long().cuda(),
        }
        models: list[Any] = [plain_classifier(shape, classes) for classes in (2, 151)]
        separate = [on_gpu(model.cuda(), library) for model in models]
        ours = built_model(shape, trunk="none").cuda()
        inputs = {"batch": batch_of(rows).to("cuda"), "tasks_BT": named(ours, BOTH, count).cuda()}

        def baseline(separate: Any = separate) -> None:
            for model in separate:
                model()

        yield timed(f"two-tasks-{count}x{length}", on_gpu(ours, inputs), baseline)


TWO_TASKS = Benchmark(
    about="sentiment and intent of one text of 16 tokens: our model against two Hugging Face "
    "DistilBERT classifiers in eager torch, from token ids to logits",
    cases=two_tasks,
    unit="s",
    ratio="baseline / ours",
    better=FASTER,
)
GATE_OVERHEAD = Benchmark(
    about="encoder, gate and one expert without a trunk, against Hugging Face's bare encoder; "
    "own-encoder: against ours alone; eager torch",
    cases=gate_overhead,
    unit="s",
    ratio="ours / baseline",
    better="1 is free, 1.02 costs 2 %",
)
INT8 = Benchmark(
    about="ONNX int8 against eager float32 torch of the same model, gate and one expert of the "
    "last task with its trunk; base-: DistilBERT-base's shape",
    cases=int8,
    unit="s",
    ratio="baseline / ours",
    better=FASTER,
)
GPU = Benchmark(
    about="two tasks of every row on a CUDA device in bfloat16, DistilBERT-base's shape, no trunk",
    cases=gpu,
    unit="s",
    ratio="baseline / ours",
    better=FASTER,
)
