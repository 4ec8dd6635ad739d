"""Benchmark `offline`: labels for many texts of mixed length, in the order of the input."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moe.benchmarks.latency import FASTER, shape_of
from moe.benchmarks.models import bundle_of, library_tokenizer, same_classifier
from moe.benchmarks.pairs import Benchmark, Case, Options, seconds_per_call
from moe.checkpoint import Bundle
from moe.data.prepare import read_task
from moe.data.sources import read_source
from moe.onnx.bundle import Precision
from moe.onnx.export import write
from moe.onnx.predictor import OnnxMixtureOfExperts
from moe.types import InputError

TEXTS, BATCH = 512, 32


def mixed_texts(count: int) -> list[str]:
    """Texts of the packaged samples in random order: reviews, intents, and a passage for every two.

    Passages are ten times as long as the others.
    """
    reviews, intents = (
        [e.text for e in read_source(f"sample:{n}", root=Path(), split="train", type="classifier")]
        for n in ("sentiment", "intent")
    )
    rows = read_source("sample:qa", root=Path(), split="train", type="span")
    passages = list(dict.fromkeys(row.context or "" for row in rows))
    columns = (reviews, passages, intents)
    texts = [columns[i % 3][i // 3 % len(columns[i % 3])] for i in range(count)]
    return [texts[i] for i in np.random.default_rng(0).permutation(count)]


def own_texts(bundle: Bundle, task: str, root: str, count: int) -> list[str]:
    """Validation texts of a task in random order, of all lengths that it has.

    Args:
        bundle: Its config says where they are.
        task: A classifier.
        root: Folder of relative files.
        count: At most so many.
    """
    config = bundle.config
    rows = read_task(task, config.tasks[task], root, config.seed_everything).validation
    return [rows[row].text for row in np.random.default_rng(0).permutation(len(rows))[:count]]


def classifier_task(bundle: Bundle) -> str:
    """The last classifier with one expert: then one Hugging Face model is the same function.

    Raises:
        InputError: There is none.
    """
    names = [t.name for t in bundle.model.tasks if t.type == "classifier" and t.num_experts == 1]
    if not names:
        raise InputError(
            "benchmark offline: no classifier task with one expert, got "
            f"{[(task.name, task.num_experts) for task in bundle.model.tasks]}: give --ckpt of a "
            "model that has one"
        )
    return names[-1]


def plain_loop(bundle: Bundle, task: str, texts: Sequence[str]) -> list[str]:
    """What is usually written: batches of 32 as they come, padded to the longest."""
    spec = next(t for t in bundle.model.tasks if t.name == task)
    tokenizer = library_tokenizer(bundle.tokenizer)
    model: Any = same_classifier(bundle.model, spec.expert_names[0])
    max_length = bundle.config.data.max_length
    labels: list[str] = []
    for first in range(0, len(texts), BATCH):
        inputs = tokenizer(
            list(texts[first : first + BATCH]),
            padding=True,
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        with torch.no_grad():
            logits = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits
        best = logits[:, : len(spec.labels)].argmax(-1).tolist()
        labels += [spec.labels[number] for number in best]
    return labels


def best_label(answer: dict[str, Any]) -> str:
    """The best label in scope, whether or not it was rejected."""
    return str(answer["label"] if answer["label"] is not None else answer["runner_up"])


def offline(options: Options) -> Iterator[Case]:
    """One classifier of our model in ONNX Runtime against the same function in a plain loop.

    Raises:
        InputError: There are data and no trained model, which alone says what they are.
    """
    if options.data and not options.checkpoint:
        raise InputError("benchmark offline: --data.root needs --ckpt, whose task the data are of")
    bundle = bundle_of(options.checkpoint, shape_of(options))
    task = classifier_task(bundle)
    count = 24 if options.quick else TEXTS
    texts = own_texts(bundle, task, options.data, count) if options.data else mixed_texts(count)
    baseline = partial(plain_loop, bundle, task, texts)
    expected = baseline()
    with tempfile.TemporaryDirectory() as folder:
        write(bundle, Path(folder), int8=True, checked=False)
        precisions: tuple[Precision, ...] = ("int8", "fp32")
        for precision in precisions:
            model = OnnxMixtureOfExperts.from_pretrained(
                folder, precision=precision, threads=options.threads
            )
            ours = partial(model.predict, texts, tasks=[task])
            said = [best_label(answer["answers"][task]) for answer in ours()]
            same = float(np.mean([a == b for a, b in zip(said, expected, strict=True)]))
            yield Case(
                name=precision,
                ours=partial(seconds_per_call, ours, 0.0),
                baseline=partial(seconds_per_call, baseline, 0.0),
                facts={"same_labels": round(same, 4), "texts": len(texts), "task": task},
            )


OFFLINE = Benchmark(
    about="one classifier over 512 unsorted texts of mixed length (with --data.root its own "
    "validation texts, else packaged ones of all tasks), ONNX Runtime, against the same function "
    "as a Hugging Face model in a loop over batches of 32; tokenizing included",
    cases=offline,
    unit="s",
    ratio="baseline / ours",
    better=FASTER,
)
