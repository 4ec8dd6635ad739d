"""Brokers on this machine, and consumers in this process with a model made by hand."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("faststream", reason="the extra [events] is not installed")
pytest.importorskip("nats", reason="the extra [events] is not installed")
pytest.importorskip("confluent_kafka", reason="the extra [events] is not installed")

from moe.events.client import read
from moe.events.embedded import mock_kafka, nats_program, nats_server
from moe.events.link import Link
from moe.events.metrics import EventMetrics
from moe.events.run import link_class
from moe.events.settings import EventSettings
from moe.events.worker import Worker
from moe.requests import Request
from moe.server.engine import Engine
from moe.server.model import Served
from moe.server.settings import Limits, Settings
from moe.types import InputError, TaskSpec

TASKS = (TaskSpec(name="mood", type="classifier", num_experts=1, labels=("bad", "good")),)


class Model:
    """Says `good` to everything; notes texts, and waits for `free`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.free = threading.Event()
        self.free.set()

    def answer(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        assert self.free.wait(20)
        self.asked += [request.text for request in requests]
        routing = [{"task": "mood", "probability": 1.0, "experts": []}]
        return [{"abstained": False, "routing": routing, "answers": {"mood": {"label": "good"}}}
                for _ in requests]  # fmt: skip


@pytest.fixture(params=["nats", "kafka"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a fresh broker of each kind."""
    if request.param == "kafka":
        with mock_kafka() as url:
            yield url
    else:
        yield from _nats(tmp_path)


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[str]:
    """The URL of a fresh NATS server."""
    yield from _nats(tmp_path)


def _nats(folder: Path) -> Iterator[str]:
    try:
        nats_program()
    except InputError as error:
        pytest.skip(str(error))
    with nats_server(folder / "nats") as server:
        yield server.url


@asynccontextmanager
async def consumer(
    broker: str, model: Model, **changes: Any
) -> AsyncIterator[tuple[Link, EventMetrics]]:
    """A started link, stopped at the end."""
    limits = Limits(grace_seconds=20.0, queue_items=500, queue_tokens=10**9)
    settings = EventSettings(broker=broker, model=Settings(checkpoint="a", limits=limits),
                             **changes)
    served = Served(name="m", backend="fake", tasks=TASKS, answer=model.answer, hash="abc",
                    count_tokens=lambda requests: [1] * len(requests))
    engine = Engine(served, settings.model, "1")
    metrics = EventMetrics(engine.metrics.registry)
    link = link_class(settings)(settings, Worker(engine, settings), metrics)
    engine.start()
    await link.start()
    try:
        yield link, metrics
    finally:
        await link.stop()
        engine.close()


async def topic(broker: str, name: str, at_least: int) -> list[dict[str, Any]]:
    """The messages of a topic as JSON with their headers, once so many are there."""
    until = time.monotonic() + 30
    while True:
        found = await asyncio.to_thread(read, broker, name)
        if len(found) >= at_least or time.monotonic() > until:
            break
        await asyncio.sleep(0.1)
    return [{**json.loads(message["body"]), "headers": message["headers"]} for message in found]


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something to become true."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


def asked(*numbers: int) -> list[tuple[str, bytes]]:
    """Requests with ids."""
    return [(str(n), json.dumps({"id": str(n), "text": f"text {n}"}).encode()) for n in numbers]
