"""Kafka by librdkafka: a batch is committed when the answers to all of it are stored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from faststream import AckPolicy
from faststream.confluent import KafkaBroker, KafkaMessage, Topic

from moe.events.link import Link, MessageTooLarge, broker_log, log
from moe.events.messages import Outgoing, Taken
from moe.events.metrics import EventMetrics
from moe.events.settings import EventSettings, without_secret
from moe.events.worker import Worker
from moe.types import InputError

_CONNECT_SECONDS = 30.0
_POLL_SECONDS = 0.05  # that a batch is collected
_PAUSE = 1.0  # seconds before a returned batch is taken again


class KafkaLink(Link):
    """Takes batches of at most `in_flight` messages, one after another."""

    def __init__(self, settings: EventSettings, worker: Worker, metrics: EventMetrics) -> None:
        super().__init__(settings, worker, metrics)
        given: Any = settings.kafka_config or None  # FastStream lists what it knows; it may be more
        self._broker = KafkaBroker(
            settings.broker.partition("://")[2].split(","),
            enable_idempotence=True,  # waits for all replicas, and repeats nothing twice
            graceful_timeout=settings.model.limits.grace_seconds,
            config=given,
            apply_types=False,
            logger=broker_log,
        )
        self._subscriber = self._broker.subscriber(
            Topic(settings.requests, declare=False),
            group_id=settings.group,
            auto_offset_reset="earliest",
            batch=True,
            max_records=settings.in_flight,
            polling_interval=_POLL_SECONDS,
            # The default commits before the handler runs: a crash would lose the batch.
            ack_policy=AckPolicy.MANUAL,
            no_reply=True,
            parser=_without_headers,
            # FastStream would parse JSON itself, and skip what is none.
            decoder=_undecoded,
        )
        self._subscriber(self._take)

    async def start(self) -> None:
        """Connects, and begins to take."""
        await self._broker.connect()
        if not await self._broker.ping(_CONNECT_SECONDS):
            raise InputError(f"--broker {without_secret(self._settings.broker)}: no Kafka answers")
        await self._broker.start()

    async def _take(self, message: KafkaMessage) -> None:
        records: Any = message.raw_message
        try:
            await asyncio.gather(*(self.settle(_taken(record)) for record in records))
        except Exception as error:
            self.give_back(error)
            await self._rewind(message)
        else:
            self._commit(records)

    def _commit(self, records: Sequence[Any]) -> None:
        """Commits these records alone: the default also commits what a rewound partition was at."""
        client = self._subscriber.consumer
        try:
            if client is not None:
                client.consumer.commit(offsets=after(records), asynchronous=True)
        except KafkaException as error:  # another has the partition now, and answers them again
            log.warning("not committed", extra={"fields": {"error": str(error)[:300]}})

    async def _rewind(self, message: KafkaMessage) -> None:
        """Lets a batch be taken again: a later commit would step over it."""
        await asyncio.sleep(_PAUSE)
        try:
            await message.nack()
        except Exception as error:
            log.error("the batch cannot be taken again here", exc_info=error)
            self.failed.set()
            await asyncio.Event().wait()  # nothing may be polled, and so committed, any more

    async def _publish(self, message: Outgoing) -> bool:
        try:
            await self._broker.publish(
                message.body,
                message.topic,
                key=message.key.encode("utf-8", "replace"),
                headers={"content-type": "application/json", **message.headers},
            )
        except KafkaException as error:
            if error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                raise MessageTooLarge(f"{len(message.body)} bytes, {error}") from error
            raise
        return False  # Kafka does not look

    async def lag(self) -> int:
        """Records of the own partitions after those that are committed."""
        return await asyncio.to_thread(self._lag)

    def _lag(self) -> int:
        client = self._subscriber.consumer
        if client is None:
            return 0
        consumer, lag = client.consumer, 0
        for part in consumer.committed(consumer.assignment(), timeout=_CONNECT_SECONDS):
            low, high = consumer.get_watermark_offsets(
                TopicPartition(part.topic, part.partition), timeout=_CONNECT_SECONDS
            )
            lag += high - (part.offset if part.offset >= 0 else low)
        return lag

    async def stop(self) -> None:
        """Takes nothing more, waits for the batch in hand, and leaves the group."""
        await self._broker.stop()


def after(records: Sequence[Any]) -> list[TopicPartition]:
    """What to commit when these records are answered: in each partition the offset after them."""
    ends: dict[tuple[str, int], int] = {}
    for record in records:
        place = record.topic(), record.partition()
        ends[place] = max(ends.get(place, 0), record.offset() + 1)
    return [TopicPartition(topic, partition, end) for (topic, partition), end in ends.items()]


def _taken(record: Any) -> Taken:
    place = f"{record.topic()}[{record.partition()}]@{record.offset()}"
    return Taken(body=record.value() or b"", place=place)


async def _without_headers(records: Any, parse: Any) -> KafkaMessage:
    """Parses a batch without headers: one that is no UTF-8 would fail it, and none is needed."""
    for record in records:
        record.set_headers([])
    message: KafkaMessage = await parse(records)
    return message


async def _undecoded(message: KafkaMessage) -> KafkaMessage:
    return message
