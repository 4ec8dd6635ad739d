"""Consumers on real brokers: a NATS server, and librdkafka's mock of Kafka."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("faststream", reason="the extra [events] is not installed")

from moe.events.client import send
from moe.events.link import Link
from moe.events.messages import Outgoing
from moe.types import InputError

from .conftest import Model, asked, consumer, topic, until

pytestmark = pytest.mark.broker
# A consumer of the mock needs seconds to get its partitions: most tests take NATS alone.
each_broker = pytest.mark.parametrize(
    "broker", ["nats", pytest.param("kafka", marks=pytest.mark.slow)], indirect=True
)
IN, OUT, DEAD = "moe.requests", "moe.answers", "moe.dead"


def test_answers_and_dead_letters(broker: str) -> None:
    bad = [("b1", b"{"), ("b2", b'{"text": 5}'), ("b3", b'"a" and more')]

    async def main() -> None:
        async with consumer(broker, Model()) as (link, metrics):
            await asyncio.to_thread(send, broker, IN, [*asked(*range(40)), *bad])
            answers = await topic(broker, OUT, 40)
            assert sorted(int(answer["id"]) for answer in answers) == list(range(40))
            assert {answer["answers"]["mood"]["label"] for answer in answers} == {"good"}
            assert {answer["headers"]["x-model-hash"] for answer in answers} == {"abc"}
            letters = await topic(broker, DEAD, 3)
            assert {letter["body"] for letter in letters} == {body.decode() for _, body in bad}
            assert all(letter["reason"] and letter["topic"] == IN for letter in letters)
            await until(lambda: metrics.messages.labels("dead")._value.get() == 3)
            async with asyncio.timeout(20):
                while await link.lag():
                    await asyncio.sleep(0.1)

    asyncio.run(main())


@each_broker
def test_what_was_taken_is_answered_before_the_end(broker: str) -> None:
    model = Model()
    model.free.clear()

    async def main() -> None:
        async with consumer(broker, model, in_flight=5) as (_, metrics):
            await asyncio.to_thread(send, broker, IN, asked(*range(20)))
            await until(lambda: metrics.in_flight._value.get() > 0)
            taken = metrics.in_flight._value.get()
            asyncio.get_running_loop().call_later(0.5, model.free.set)
        # The end of the block stops the link, while the model is held.
        assert metrics.messages.labels("answered")._value.get() >= taken
        assert metrics.in_flight._value.get() == 0
        before = len(await topic(broker, OUT, 1))
        assert before == metrics.messages.labels("answered")._value.get() <= 20
        async with consumer(broker, model):  # another takes the rest, and nothing twice
            answers = await topic(broker, OUT, 20)
        assert sorted(int(answer["id"]) for answer in answers) == list(range(20))

    asyncio.run(main())


def test_a_request_is_acknowledged_after_its_answer_is_stored(
    broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()

    async def main() -> None:
        async with consumer(broker, Model()) as (link, metrics):
            publish = link._publish

            async def held(message: Outgoing) -> bool:
                if not gate.is_set():
                    raise TimeoutError("the broker is away")
                return await publish(message)

            monkeypatch.setattr(link, "_publish", held)
            await asyncio.to_thread(send, broker, IN, asked(1))
            await until(lambda: metrics.retries._value.get() >= 2)
            assert await link.lag() == 1
            gate.set()
            await topic(broker, OUT, 1)
            async with asyncio.timeout(20):
                while await link.lag():
                    await asyncio.sleep(0.1)

    asyncio.run(main())


@each_broker
def test_what_fails_unforeseen_is_taken_again(broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [RuntimeError("unforeseen")]
    settle = Link.settle

    async def once(self: Link, taken: Any) -> None:
        if failures:
            raise failures.pop()
        await settle(self, taken)

    monkeypatch.setattr(Link, "settle", once)

    async def main() -> None:
        async with consumer(broker, Model()) as (_, metrics):
            await asyncio.to_thread(send, broker, IN, asked(*range(5)))
            answers = await topic(broker, OUT, 5)
            assert {int(answer["id"]) for answer in answers} == set(range(5))
            assert metrics.messages.labels("returned")._value.get() == 1

    asyncio.run(main())


@each_broker
def test_each_task_may_have_its_topic(broker: str) -> None:
    async def main() -> None:
        async with consumer(broker, Model(), per_task=True):
            await asyncio.to_thread(send, broker, IN, asked(1))
            (answer,) = await topic(broker, f"{OUT}.mood", 1)
            assert answer["id"] == "1" and list(answer["answers"]) == ["mood"]

    asyncio.run(main())


def test_nats_stores_one_answer_to_a_request_sent_twice(nats: str) -> None:
    body = asked(7)[0][1]

    async def main() -> None:
        async with consumer(nats, Model()) as (_, metrics):
            await asyncio.to_thread(send, nats, IN, [("first", body), ("second", body)])
            await until(lambda: metrics.messages.labels("answered")._value.get() == 2)
            assert metrics.duplicates._value.get() == 1
            assert len(await topic(nats, OUT, 1)) == 1

    asyncio.run(main())


def test_consumers_of_a_group_share_the_requests(nats: str) -> None:
    one, two = Model(), Model()

    async def main() -> None:
        async with consumer(nats, one, in_flight=4), consumer(nats, two, in_flight=4):
            await asyncio.to_thread(send, nats, IN, asked(*range(100)))
            await topic(nats, OUT, 100)

    asyncio.run(main())
    assert sorted(one.asked + two.asked) == sorted(f"text {n}" for n in range(100))
    assert one.asked and two.asked


def test_streams_of_the_operator_are_taken_as_they_are(nats: str) -> None:
    async def main() -> None:
        import nats as client_of_nats

        client = await client_of_nats.connect(nats)
        await client.jetstream().add_stream(name="mine", subjects=["moe.>"])
        await client.close()
        async with consumer(nats, Model()):
            await asyncio.to_thread(send, nats, IN, asked(1))
            assert len(await topic(nats, OUT, 1)) == 1

    asyncio.run(main())


@pytest.mark.parametrize(("places", "expected"), [
    ([("t", 0, 7), ("t", 0, 8)], [("t", 0, 9)]),
    ([("t", 1, 4), ("t", 0, 8), ("t", 1, 3)], [("t", 0, 9), ("t", 1, 5)]),
])
def test_what_is_committed_is_what_was_answered(places: Any, expected: Any) -> None:
    from moe.events.kafka import after

    records = [SimpleNamespace(topic=lambda t=t: t, partition=lambda p=p: p, offset=lambda o=o: o)
               for t, p, o in places]
    found = sorted((part.topic, part.partition, part.offset) for part in after(records))
    assert found == expected


@pytest.mark.slow
def test_kafka_headers_that_are_no_text_stop_nothing() -> None:
    from confluent_kafka import Producer

    from moe.events.embedded import mock_kafka

    async def main(broker: str) -> None:
        async with consumer(broker, Model()):
            producer = Producer({"bootstrap.servers": broker.partition("://")[2]})
            headers = [("h", b"\xff"), ("content-type", b"application/json"), ("reply_to", b"x")]
            producer.produce(IN, b"{", headers=headers)
            producer.produce(IN, json.dumps({"id": "1", "text": "a"}).encode(), headers=headers)
            producer.flush()
            assert [answer["id"] for answer in await topic(broker, OUT, 1)] == ["1"]
            assert "no JSON" in (await topic(broker, DEAD, 1))[0]["reason"]

    with mock_kafka() as broker:
        asyncio.run(main(broker))


@pytest.mark.parametrize(("kind", "said"), [
    ("nats", "no NATS with JetStream"), ("kafka", "no Kafka answers"),
])
def test_no_broker_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, kind: str, said: str
) -> None:
    monkeypatch.setattr(f"moe.events.{kind}._CONNECT_SECONDS", 0.5)

    async def main() -> None:
        async with consumer(f"{kind}://me:secret@127.0.0.1:9", Model()):
            raise AssertionError("connected to nothing")

    with pytest.raises(InputError, match=rf"{kind}://\*\*\*@127.0.0.1:9: {said}"):
        asyncio.run(main())
