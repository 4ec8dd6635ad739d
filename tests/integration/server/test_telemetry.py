"""What a server writes about its requests, and what it does not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe import MixtureOfExperts
from moe.checkpoint import Bundle, save_bundle
from moe.monitor.reading import read_traffic
from moe.release.hashing import model_hash
from moe.server.settings import Settings

SECRET = "the monks of qvzx"
REQUESTS: list[dict[str, Any]] = [
    {"text": SECRET},
    {"text": SECRET, "context": "an abbot led the monks"},
    {"text": "good film", "tasks": ["sentiment", "intent"]},
]


@pytest.fixture
def model(word_bundle: Callable[..., Bundle], tmp_path: Path) -> Path:
    save_bundle(word_bundle(), tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize("embeddings", [False, True])
def test_rows_without_texts(model: Path, running: Any, tmp_path: Path, embeddings: bool) -> None:
    folder = tmp_path / "telemetry"
    settings = Settings(
        checkpoint=str(model), device="cpu", threads=1, telemetry=str(folder),
        telemetry_embeddings=embeddings,
    )
    expected = MixtureOfExperts.from_pretrained(model, "cpu").predict(REQUESTS)
    with running(settings=settings, loaded=True) as server:
        reply = server.client.predict(REQUESTS)
    assert reply.headers["x-model-hash"] == model_hash(model)
    for ours, theirs in zip(reply.json, expected, strict=True):
        assert ours.keys() == theirs.keys(), "the answer form is that of Python"
    specs = MixtureOfExperts.from_pretrained(model, "cpu").tasks
    traffic = read_traffic(folder, specs)
    assert traffic.model == model_hash(model) and traffic.named == 1
    names = [spec.name for spec in specs]
    found = [names[task] for task in traffic.profile.task_N]
    assert found == [answer["routing"][0]["task"] for answer in expected[:2]]
    width = 64 if embeddings else 0  # two means of 32 numbers
    assert traffic.profile.embedding_MD.shape == (2, width)
    for part in folder.iterdir():
        assert b"qvzx" not in part.read_bytes()


def test_a_folder_that_is_gone_costs_no_answer(model: Path, running: Any, tmp_path: Path) -> None:
    settings = Settings(
        checkpoint=str(model), device="cpu", threads=1, telemetry=str(tmp_path / "telemetry")
    )
    with running(settings=settings, loaded=True) as server:
        server.service.engine.telemetry._part_rows = 1
        shutil.rmtree(tmp_path / "telemetry")
        for _ in range(3):
            assert server.client.predict(REQUESTS[0]).status == 200
    assert server.service.engine.metrics.telemetry_dropped._value.get() == 3
