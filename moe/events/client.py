"""The other side: sends requests and reads what came of them. For `scripts/publish.py` and checks.

Any client of NATS or Kafka does; what it has to do, and what it may rely on, is in docs/events.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moe.events.settings import without_secret
from moe.types import InputError

_READ = 256  # messages of a fetch
_PAUSE = 0.2  # seconds between two tries
_SECONDS = 60.0  # for a broker that is away


def send(broker: str, topic: str, messages: Iterable[tuple[str, bytes]]) -> int:
    """Publishes messages, each with a key that makes it the same when it is sent twice.

    Returns:
        How many. All are stored when this returns.

    Raises:
        InputError: A broker was away for a minute, or has no such topic.
    """
    if broker.startswith("kafka:"):
        return _send_kafka(broker, topic, messages)
    return asyncio.run(_send_nats(broker, topic, messages))


def read(broker: str, topic: str) -> list[dict[str, Any]]:
    """All messages that a topic holds: `key` (Kafka), `headers` and `body` of each."""
    if broker.startswith("kafka:"):
        return _read_kafka(broker, topic)
    return asyncio.run(_read_nats(broker, topic))


def keyed(lines: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    """Lines with their keys: the id of the request in it, or else what the line is."""
    for line in lines:
        body = line.strip()
        if not body:
            continue
        try:
            found = json.loads(body)
        except ValueError:
            found = None  # whatever it is, the consumer says what is wrong with it
        own = found.get("id") if isinstance(found, dict) else None
        yield own if isinstance(own, str) and own else hashlib.sha256(body).hexdigest(), body


def count(broker: str, topic: str) -> int:
    """How many messages a topic holds; 0 if there is none."""
    if broker.startswith("kafka:"):
        return _count_kafka(broker, topic)
    return asyncio.run(_count_nats(broker, topic))


async def _count_nats(broker: str, topic: str) -> int:
    from nats.js.errors import NotFoundError

    client = await _connect(broker)
    try:
        jetstream = client.jetstream()
        stream = await jetstream.find_stream_name_by_subject(topic)
        return (await jetstream.stream_info(stream)).state.messages
    except NotFoundError:
        return 0
    finally:
        await client.close()


async def _send_nats(broker: str, topic: str, messages: Iterable[tuple[str, bytes]]) -> int:
    client = await _connect(broker)
    jetstream, gate = client.jetstream(), asyncio.Semaphore(_READ)

    async def one(key: str, body: bytes) -> None:
        until = time.monotonic() + _SECONDS
        async with gate:
            while True:
                try:
                    headers = {"Nats-Msg-Id": _header(key)}
                    await jetstream.publish(topic, body, headers=headers, timeout=5)
                    return
                except Exception as error:
                    if time.monotonic() > until:
                        raise InputError(
                            f"{without_secret(broker)}, topic {topic}: not stored within "
                            f"{_SECONDS:g} s ({error}); a consumer makes the stream when it starts"
                        ) from error
                    await asyncio.sleep(_PAUSE)

    try:
        done = await asyncio.gather(*(one(key, body) for key, body in messages))
    finally:
        await client.close()
    return len(done)


async def _connect(broker: str) -> Any:
    import nats

    try:
        async with asyncio.timeout(_SECONDS):
            return await nats.connect(broker, max_reconnect_attempts=-1, reconnect_time_wait=0.2)
    except TimeoutError as error:
        raise InputError(f"{without_secret(broker)}: no answer in {_SECONDS:g} s") from error


def _header(key: str) -> str:
    """A key as a header may hold it."""
    return key if key.isascii() and key.isprintable() else hashlib.sha256(key.encode()).hexdigest()


async def _read_nats(broker: str, topic: str) -> list[dict[str, Any]]:
    from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

    client = await _connect(broker)
    try:
        jetstream = client.jetstream()
        config = ConsumerConfig(ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.ALL)
        taker = await jetstream.pull_subscribe(topic, config=config)
        found: list[dict[str, Any]] = []
        while (await taker.consumer_info()).num_pending:
            found += [
                {"headers": dict(message.headers or {}), "body": message.data}
                for message in await taker.fetch(_READ, timeout=5)
            ]
        return found
    finally:
        await client.close()


def _send_kafka(broker: str, topic: str, messages: Iterable[tuple[str, bytes]]) -> int:
    from confluent_kafka import Producer

    producer, count, failed = Producer(_kafka(broker) | {"enable.idempotence": True}), 0, []

    def delivered(error: Any, message: Any) -> None:
        if error:
            failed.append(str(error))

    for key, body in messages:
        producer.produce(topic, body, key.encode(), on_delivery=delivered)
        producer.poll(0)
        count += 1
    producer.flush()
    if failed:
        raise InputError(f"{broker}, topic {topic}: {len(failed)} not stored: {failed[0]}")
    return count


def _count_kafka(broker: str, topic: str) -> int:
    with _reader(broker) as consumer:
        return sum(end for _, end in _ends(consumer, topic))


def _read_kafka(broker: str, topic: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with _reader(broker) as consumer:
        places = _ends(consumer, topic)
        consumer.assign([place for place, _ in places])
        until = time.monotonic() + _SECONDS
        while len(found) < sum(end for _, end in places) and time.monotonic() < until:
            found += [_record(m) for m in consumer.consume(_READ, timeout=1.0) if not m.error()]
    return found


def _record(message: Any) -> dict[str, Any]:
    return {
        "key": (message.key() or b"").decode(),
        "headers": {name: value.decode() for name, value in message.headers() or ()},
        "body": message.value(),
    }


@contextmanager
def _reader(broker: str) -> Iterator[Any]:
    from confluent_kafka import Consumer

    consumer = Consumer(_kafka(broker) | {"group.id": "reader", "enable.auto.commit": False})
    try:
        yield consumer
    finally:
        consumer.close()


def _ends(consumer: Any, topic: str) -> list[tuple[Any, int]]:
    """The beginning of each partition, and the number after its last record."""
    from confluent_kafka import TopicPartition

    numbers = consumer.list_topics(topic, timeout=_SECONDS).topics[topic].partitions
    places = [TopicPartition(topic, number, 0) for number in numbers]
    return [(p, consumer.get_watermark_offsets(p, timeout=_SECONDS)[1]) for p in places]


def _kafka(broker: str) -> dict[str, Any]:
    return {"bootstrap.servers": broker.partition("://")[2]}
