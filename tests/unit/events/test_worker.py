"""From a message to what is published, with a model made by hand and no broker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from moe.events import worker
from moe.events.link import Link, MessageTooLarge
from moe.events.messages import Outgoing, Taken
from moe.events.metrics import EventMetrics
from moe.events.settings import EventSettings
from moe.requests import Request
from moe.server.engine import Engine
from moe.server.model import Served
from moe.server.settings import Limits, Settings
from moe.types import TaskSpec

TASKS = (TaskSpec(name="mood", type="classifier", num_experts=1, labels=("bad", "good")),)
ROUTING = [{"task": "mood", "probability": 1.0, "experts": [{"name": "mood-0", "weight": 1.0}]}]


class Model:
    """Notes what it is asked; `boom` fails so many times, `nan` has a score that is none."""

    def __init__(self, failures: int = 0) -> None:
        self.batches: list[list[str]] = []
        self.failures = failures

    def answer(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        texts = [request.text for request in requests]
        self.batches.append(texts)
        if "boom" in texts and self.failures:
            self.failures -= len(texts) == 1  # a batch that fails is not the request's failure
            raise RuntimeError("cannot")
        return [{
            "abstained": False, "routing": ROUTING,
            "answers": {"mood": {"label": "good", "score": float(r.text)}} if r.text == "nan"
            else {"mood": {"label": "good"}},
            "explanation": {"large": True},
        } for r in requests]  # fmt: skip


class Published(Link):
    """A broker that is a list; fails as often as told, and takes nothing for one topic."""

    def __init__(self, *arguments: Any, away: int = 0, refused: str = "") -> None:
        super().__init__(*arguments)
        self.stored: list[Outgoing] = []
        self.away, self.refused = away, refused

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def lag(self) -> int:
        return 0

    async def _publish(self, message: Outgoing) -> bool:
        if self.away:
            self.away -= 1
            raise TimeoutError("away")
        if message.topic == self.refused:
            raise MessageTooLarge("too many bytes")
        known = message.digest in {other.digest for other in self.stored}
        if not known:
            self.stored.append(message)
        return known


def settle(
    model: Model, *messages: Taken, link: dict[str, Any] | None = None, **changes: Any
) -> tuple[Published, EventMetrics]:
    """Settles all messages at once; a batch has room for 100 tokens, a message is one."""
    limits = Limits(batch_tokens=100, characters=20, body=1000)
    settings = EventSettings(broker="nats://h", model=Settings(checkpoint="a", limits=limits),
                             **changes)
    served = Served(name="m", backend="fake", tasks=TASKS, answer=model.answer, hash="abc",
                    count_tokens=lambda requests: [1] * len(requests))

    async def main() -> tuple[Published, EventMetrics]:
        engine = Engine(served, settings.model, "1")
        metrics = EventMetrics(engine.metrics.registry)
        broker = Published(settings, worker.Worker(engine, settings), metrics, **(link or {}))
        engine.start()
        try:
            async with asyncio.timeout(20):
                await asyncio.gather(*(broker.settle(message) for message in messages))
        finally:
            engine.close()
        return broker, metrics

    return asyncio.run(main())


def taken(value: Any, number: int = 1, deliveries: int = 1) -> Taken:
    return Taken(body=json.dumps(value).encode(), place=f"s/{number}", deliveries=deliveries)


def outcomes(metrics: EventMetrics) -> dict[str, float]:
    return {name: metrics.messages.labels(name)._value.get() for name in ("answered", "dead")}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_FIRST_PAUSE", 0.001)


def test_an_answer_has_id_and_hash_and_no_explanation() -> None:
    broker, metrics = settle(Model(), taken({"id": "7", "text": "a"}))
    (message,) = broker.stored
    assert (message.topic, message.key) == ("moe.answers", "7")
    assert message.headers == {"x-model-hash": "abc"}
    assert json.loads(message.body) == {
        "id": "7", "abstained": False, "routing": ROUTING, "answers": {"mood": {"label": "good"}},
    }
    assert outcomes(metrics) == {"answered": 1, "dead": 0}


def test_messages_share_batches() -> None:
    model = Model()
    settle(model, *(taken({"id": str(n), "text": "a"}, n) for n in range(50)))
    assert sum(map(len, model.batches)) == 50 and len(model.batches) < 10


def test_what_is_no_request_dies_alone() -> None:
    bad = Taken(body=b"{", place="s/2")
    broker, metrics = settle(Model(), taken({"text": "a"}), bad)
    letters = {message.topic: json.loads(message.body) for message in broker.stored}
    assert letters["moe.answers"]["id"] == "s/1"
    assert letters["moe.dead"]["place"] == "s/2" and "no JSON" in letters["moe.dead"]["reason"]
    assert outcomes(metrics) == {"answered": 1, "dead": 1}


def test_a_failing_model_is_asked_again() -> None:
    model = Model(failures=2)
    broker, _ = settle(model, taken({"text": "boom"}), attempts=3)
    assert [message.topic for message in broker.stored] == ["moe.answers"]
    assert model.batches == [["boom"]] * 3


def test_after_so_many_attempts_the_message_is_dead() -> None:
    model = Model(failures=9)
    broker, _ = settle(model, taken({"text": "boom"}), attempts=2)
    letter = json.loads(broker.stored[0].body)
    assert letter["reason"] == "the model failed 2 times: RuntimeError: cannot"
    assert letter["error_type"] == "Backend" and model.batches == [["boom"]] * 2


def test_an_answer_that_is_no_json_is_a_failure_too() -> None:
    broker, _ = settle(Model(), taken({"text": "nan"}), attempts=1)
    assert "the model failed 1 times: ValueError" in json.loads(broker.stored[0].body)["reason"]


def test_what_comes_back_too_often_is_not_read_again() -> None:
    model = Model()
    messages = [taken({"id": str(n), "text": "a"}, n, deliveries=n) for n in (4, 5)]
    broker, metrics = settle(model, *messages, deliveries=4)
    letters = [json.loads(m.body) for m in broker.stored if m.topic == "moe.dead"]
    assert len(letters) == 1 and letters[0]["deliveries"] == 5
    assert "taken 5 times and never acknowledged, at most 4" in letters[0]["reason"]
    assert metrics.redelivered._value.get() == 2


def test_a_second_answer_to_a_request_is_the_same_message() -> None:
    again = taken({"id": "7", "text": "a"}, 1, deliveries=2)
    broker, metrics = settle(Model(), taken({"id": "7", "text": "a"}, 1), again)
    assert len(broker.stored) == 1 and metrics.duplicates._value.get() == 1


def test_a_broker_that_is_away_is_waited_for() -> None:
    broker, metrics = settle(Model(), taken({"text": "a"}), link={"away": 2})
    assert len(broker.stored) == 1 and metrics.retries._value.get() == 2


def test_an_answer_that_the_broker_never_takes_is_dead() -> None:
    broker, metrics = settle(Model(), taken({"text": "a"}), link={"refused": "moe.answers"})
    (message,) = broker.stored
    assert message.topic == "moe.dead"
    assert json.loads(message.body)["reason"] == "the answer: too many bytes"
    assert outcomes(metrics) == {"answered": 0, "dead": 1}
