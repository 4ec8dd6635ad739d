"""NATS with JetStream: streams on disk, a durable consumer that the group shares."""

from __future__ import annotations

import asyncio
from typing import Any

from faststream import AckPolicy
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub
from nats.errors import MaxPayloadError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy as Acknowledged
from nats.js.api import ConsumerConfig, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError

from moe.events.link import Link, MessageTooLarge, broker_log, log
from moe.events.messages import Outgoing, Taken
from moe.events.metrics import EventMetrics
from moe.events.settings import EventSettings, without_secret
from moe.events.worker import Worker
from moe.types import InputError

_CONNECT_SECONDS = 30.0
_FETCH_SECONDS = 2.0  # that a fetch waits for the first message
_PUBLISH_SECONDS = 5.0
_PAUSE = 1.0  # seconds before a returned message may be taken again
_MOST_PENDING = 50_000  # messages taken and not acknowledged, of all consumers together


class NatsLink(Link):
    """Takes from a stream, at most `in_flight` messages at a time."""

    def __init__(self, settings: EventSettings, worker: Worker, metrics: EventMetrics) -> None:
        super().__init__(settings, worker, metrics)
        self._broker = NatsBroker(
            settings.broker,
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            graceful_timeout=settings.model.limits.grace_seconds,
            apply_types=False,
            logger=broker_log,
        )
        self._subscriber: Any = None
        self._held: dict[str, NatsMessage] = {}
        self._streams: dict[str, str] = {}  # by topic

    @property
    def _jetstream(self) -> JetStreamContext:
        return self._broker.config.connection_state.stream

    async def start(self) -> None:
        """Connects, makes what streams are missing, and begins to take."""
        await self._connect()
        await self._declare()
        settings = self._settings
        self._subscriber = self._broker.subscriber(
            settings.requests,
            stream=JStream(self._streams[settings.requests], declare=False),
            durable=settings.group,
            pull_sub=PullSub(batch_size=settings.in_flight, timeout=_FETCH_SECONDS),
            # The default acknowledges whatever happens.
            ack_policy=AckPolicy.MANUAL,
            no_reply=True,
            # FastStream would parse JSON itself, and never show us what is none.
            decoder=_undecoded,
        )
        self._subscriber(self._take)
        await self._broker.start()

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._broker.connect()
                await self._jetstream.account_info()
        except Exception as error:
            raise InputError(
                f"--broker {without_secret(self._settings.broker)}: no NATS with JetStream answers "
                f"({type(error).__name__}: {error})"
            ) from error

    async def _declare(self) -> None:
        settings = self._settings
        keep = {"max_age": settings.keep_seconds, "duplicate_window": settings.duplicate_seconds}
        requests = await self._stream(
            settings.requests, [settings.requests], retention=RetentionPolicy.WORK_QUEUE
        )
        await self._stream(settings.answers, [settings.answers, f"{settings.answers}.>"], **keep)
        await self._stream(settings.dead, [settings.dead])
        await self._jetstream.add_consumer(
            requests,
            ConsumerConfig(
                durable_name=settings.group,
                filter_subject=settings.requests,
                ack_policy=Acknowledged.EXPLICIT,
                ack_wait=settings.ack_seconds,
                max_deliver=-1,  # the worker gives up, with a reason; NATS would without
                max_ack_pending=_MOST_PENDING,
            ),
        )

    async def _stream(self, topic: str, subjects: list[str], **options: Any) -> str:
        """The name of the stream that holds a topic; it is made if there is none."""
        try:
            name = await self._jetstream.find_stream_name_by_subject(subjects[-1])
        except NotFoundError:
            name = topic.replace(".", "_")
            config = StreamConfig(name=name, subjects=subjects, storage=StorageType.FILE, **options)
            await self._jetstream.add_stream(config)
            log.info("stream made", extra={"fields": {"stream": name, "subjects": subjects}})
        self._streams[topic] = name
        return name

    async def _take(self, message: NatsMessage) -> None:
        found = message.raw_message.metadata
        place = f"{found.stream}/{found.sequence.stream}"
        taken = Taken(body=message.body, place=place, deliveries=found.num_delivered)
        self._held[place] = message
        try:
            await self.settle(taken)
            await message.ack()
        except Exception as error:
            self.give_back(error)
            await message.nack(delay=_PAUSE)
        finally:
            self._held.pop(place, None)

    async def _publish(self, message: Outgoing) -> bool:
        root = next(t for t in self._streams if f"{message.topic}.".startswith(f"{t}."))
        try:
            stored: Any = await self._broker.publish(
                message.body,
                message.topic,
                headers={"Nats-Msg-Id": message.digest, **_plain(message)},
                stream=self._streams[root],
                timeout=_PUBLISH_SECONDS,
            )
        except MaxPayloadError as error:
            raise MessageTooLarge(f"{len(message.body)} bytes, {error}") from error
        return bool(stored.duplicate)

    async def extend(self) -> None:
        """Keeps NATS from giving to others what is still worked on."""
        for message in list(self._held.values()):
            await message.in_progress()

    async def lag(self) -> int:
        """What waits for a first delivery, and what was delivered and not acknowledged."""
        stream = self._streams[self._settings.requests]
        info = await self._jetstream.consumer_info(stream, self._settings.group)
        return (info.num_pending or 0) + (info.num_ack_pending or 0)

    async def stop(self) -> None:
        """Takes nothing more, waits for what was taken, and closes the connection."""
        await self._broker.stop()


async def _undecoded(message: NatsMessage) -> NatsMessage:
    return message


def _plain(message: Outgoing) -> dict[str, str]:
    return {"content-type": "application/json", **message.headers}
