"""A tiny model that remembers its tasks, and a file of rows for a new one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from moe.abstain import Reference, normalise
from moe.bricks.fit import FitConfig
from moe.checkpoint import Bundle
from moe.collect import embed_wide
from moe.data.collate import collate_requests
from moe.data.windows import make_windows

FEW = FitConfig(epochs=1, batch_size=8)
OLD = {"sentiment": "good film very bad", "qa": "who led the monks", "intent": "an abbot was"}


def texts(words: str, count: int, seed: int = 0) -> list[str]:
    """Texts of three to six of the words."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(words.split(), k=draw.randint(3, 6))) for _ in range(count)]


def wide(bundle: Bundle, asked: list[str]) -> np.ndarray:
    """What is remembered of texts."""
    windows = [make_windows(ids, None, max_length=32, stride=4)
               for ids, _ in bundle.tokenizer.encode(asked)]
    requests = collate_requests(range(len(asked)), windows, bundle.tokenizer)
    return embed_wide(bundle.model, requests)


@pytest.fixture
def old_model(word_bundle: Callable[..., Bundle], tmp_path: Path) -> Callable[..., Bundle]:
    """Builds a bundle with a memory and, with `abstains`, a reference."""

    def build(abstains: bool = True) -> Bundle:
        bundle = word_bundle()
        bundle = replace(bundle, config=replace(
            bundle.config, data=replace(bundle.config.data, cache=str(tmp_path / "cache"))))
        memory = {name: wide(bundle, texts(words, 40)).astype(np.float16).astype(np.float32)
                  for name, words in OLD.items()}
        bundle = replace(bundle, memory=memory)
        if not abstains:
            return bundle
        read = {name: rows[:, : bundle.model.gate.dim] for name, rows in memory.items()}
        centre = np.mean([rows.mean(0) for rows in read.values()], 0).astype(np.float16)
        centre = centre.astype(np.float32)
        strange = wide(bundle, texts("7 8 9 zz", 20))[:, : bundle.model.gate.dim]
        half = np.float16
        reference = Reference(
            centre_D=centre,
            exemplars={k: normalise(v, centre).astype(half).astype(np.float32)
                       for k, v in read.items()},
            strangers_XD=normalise(strange, centre).astype(half).astype(np.float32),
            threshold=-0.1,
        )
        return replace(bundle, calibration=replace(bundle.calibration, reference=reference,
                                                   temperature={"qa-0": 1.5, "intent-2": 0.7}))

    return build


@pytest.fixture
def new_rows(tmp_path: Path) -> Path:
    """`topic.csv`: two classes told apart by their words, which no old task has."""
    rows = [f"{text},cats" for text in texts("cat purr paw", 30)]
    rows += [f"{text},dogs" for text in texts("dog bark leash", 30, seed=1)]
    (tmp_path / "topic.csv").write_text("\n".join(["text,label", *rows]))
    torch.manual_seed(0)
    return tmp_path / "topic.csv"


@pytest.fixture
def tagged_rows(tmp_path: Path) -> Path:
    """`slots.jsonl`: words of which some are animals."""
    lines = []
    for text in texts("cat purr paw dog bark", 40):
        tags = ["B-animal" if word in ("cat", "dog") else "O" for word in text.split()]
        lines.append(json.dumps({"tokens": text.split(), "tags": tags}))
    (tmp_path / "slots.jsonl").write_text("\n".join(lines))
    return tmp_path / "slots.jsonl"
