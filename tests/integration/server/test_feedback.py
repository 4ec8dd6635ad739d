"""Corrections over HTTP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from moe.feedback import read_quarantine
from moe.server.settings import Settings

GOOD = {"text": "fine", "task": "mood", "label": "bad"}


def send(client: Any, value: Any, **headers: str) -> Any:
    body = json.dumps(value).encode()
    headers = {"Content-Type": "application/json", **headers}
    return client.ask("POST", "/feedback", body, **headers)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(checkpoint="none", feedback=str(tmp_path), feedback_per_source=2)


def test_corrections_wait_in_quarantine(running: Any, settings: Settings, tmp_path: Path) -> None:
    with running(settings=settings) as server:
        reply = send(server.client, GOOD)
        # The model of text says "good" with a score of 0.9.
        assert (reply.status, reply.json) == (200, {"status": "held", "agrees": False})
        bad = send(server.client, {**GOOD, "label": "fine"})
        assert bad.status == 422 and "(bad, good), got 'fine'" in bad.json["error"]
        assert send(server.client, GOOD, **{"Content-Type": "text/plain"}).status == 415
        assert send(server.client, {**GOOD, "label": "good"}).json["agrees"] is True
        over = send(server.client, GOOD)
        assert over.status == 429 and "at most 2 corrections a day" in over.json["error"]
        assert server.client.predict("fine").status == 200
    held = read_quarantine(tmp_path)
    assert [(row.source, row.correction.label) for row in held] == [
        ("address-127.0.0.1", "bad"), ("address-127.0.0.1", "good"),
    ]  # fmt: skip
    assert held[0].said["label"] == "good"


def test_a_key_is_a_source_and_is_not_written_down(
    running: Any, tmp_path: Path
) -> None:
    keyed = Settings(checkpoint="none", feedback=str(tmp_path), api_keys=(b"sesame",))
    with running(settings=keyed) as server:
        assert send(server.client, GOOD).status == 401
        assert send(server.client, GOOD, Authorization="Bearer sesame").status == 200
    text = next(tmp_path.glob("*.jsonl")).read_text()
    assert "key-" in text and "sesame" not in text


def test_without_a_folder_there_is_no_route(running: Any) -> None:
    with running() as server:
        assert send(server.client, GOOD).status == 404
