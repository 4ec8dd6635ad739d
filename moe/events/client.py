"""The other side: sends requests and reads what came of them. For `scripts/events.py` and checks.

Any client of NATS or Kafka does; what it has to do, and what it may rely on, is in docs/events.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from moe.types import InputError

_READ = 256  # messages of a fetch
_PAUSE = 0.2  # seconds between two tries


def send(broker: str, topic: str, messages: Iterable[tuple[str, bytes]]) -> int:
    """Publishes messages, each with a key that makes it the same when it is sent twice.

    Returns:
        How many. All are stored when this returns; a broker that is away is waited for.
    """
    if broker.startswith("kafka:"):
        return _send_kafka(broker, topic, messages)
    return asyncio.run(_send_nats(broker, topic, messages))


def read(broker: str, topic: str) -> list[dict[str, Any]]:
    """All messages that a topic holds: `key` (Kafka), `headers` and `body` of each."""
    if broker.startswith("kafka:"):
        return _read_kafka(broker, topic)
    return asyncio.run(_read_nats(broker, topic))


async def _send_nats(broker: str, topic: str, messages: Iterable[tuple[str, bytes]]) -> int:
    import nats

    client = await nats.connect(broker, max_reconnect_attempts=-1, reconnect_time_wait=0.2)
    jetstream, gate = client.jetstream(), asyncio.Semaphore(_READ)

    async def one(key: str, body: bytes) -> None:
        async with gate:
            while True:
                try:
                    await jetstream.publish(topic, body, headers={"Nats-Msg-Id": key}, timeout=5)
                    return
                except Exception:
                    await asyncio.sleep(_PAUSE)

    try:
        done = await asyncio.gather(*(one(key, body) for key, body in messages))
    finally:
        await client.close()
    return len(done)


async def _read_nats(broker: str, topic: str) -> list[dict[str, Any]]:
    import nats
    from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

    client = await nats.connect(broker)
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


def _read_kafka(broker: str, topic: str, seconds: float = 20.0) -> list[dict[str, Any]]:
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer(_kafka(broker) | {"group.id": "reader", "enable.auto.commit": False})
    try:
        parts = consumer.list_topics(topic, timeout=seconds).topics[topic].partitions
        places = [TopicPartition(topic, number, 0) for number in parts]
        ends = [consumer.get_watermark_offsets(place, timeout=seconds)[1] for place in places]
        consumer.assign(places)
        found: list[dict[str, Any]] = []
        until = time.monotonic() + seconds
        while len(found) < sum(ends) and time.monotonic() < until:
            for message in consumer.consume(_READ, timeout=1.0):
                if not message.error():
                    headers = {name: value.decode() for name, value in message.headers() or ()}
                    key = (message.key() or b"").decode()
                    found.append({"key": key, "headers": headers, "body": message.value()})
        return found
    finally:
        consumer.close()


def _kafka(broker: str) -> dict[str, Any]:
    return {"bootstrap.servers": broker.partition("://")[2]}
