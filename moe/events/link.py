"""What every broker does alike: an answer is published, and only then its request acknowledged."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod

from moe.events.messages import Outgoing, Taken
from moe.events.metrics import EventMetrics
from moe.events.settings import EventSettings
from moe.events.worker import Worker
from moe.server.errors import too_large

_LONGEST_PAUSE = 5.0  # seconds between two tries to publish

log = logging.getLogger("moe.server")
broker_log = log.getChild("broker")  # of FastStream, which says much
broker_log.setLevel(logging.WARNING)


class MessageTooLarge(Exception):
    """The broker will never take this message."""


class Link(ABC):
    """A connection to a broker that takes requests and publishes what answers them.

    Args:
        settings: Broker, topics, bounds.
        worker: Answers.
        metrics: Counts.

    Attributes:
        failed: Set when the consumer can go on no more and must be started anew.
    """

    def __init__(self, settings: EventSettings, worker: Worker, metrics: EventMetrics) -> None:
        self._settings = settings
        self._worker = worker
        self._metrics = metrics
        self.failed = asyncio.Event()

    @abstractmethod
    async def start(self) -> None:
        """Connects, and begins to take.

        Raises:
            InputError: The broker cannot be reached, or its topics are not as expected.
        """

    @abstractmethod
    async def stop(self) -> None:
        """Takes nothing more, and returns when what was taken is settled or its time is over."""

    @abstractmethod
    async def lag(self) -> int:
        """Requests in the topic that are not acknowledged."""

    async def extend(self) -> None:  # noqa: B027  # not every broker has to be told
        """Tells the broker that what was taken is still worked on."""

    @abstractmethod
    async def _publish(self, message: Outgoing) -> bool:
        """Returns when the broker has stored a message: whether it had it already.

        Raises:
            MessageTooLarge: It will never take it.
        """

    async def settle(self, taken: Taken) -> None:
        """Answers a message; when this returns, the broker has stored what answers it."""
        started = time.perf_counter()
        if taken.deliveries > 1:
            self._metrics.redelivered.inc()
        with self._metrics.in_flight.track_inprogress():
            messages = await self._worker.respond(taken)
            try:
                for message in messages:
                    await self._insist(message)
            except MessageTooLarge as error:
                messages = [self._worker.give_up(taken, too_large(f"the answer: {error}"))]
                await self._insist(messages[0])
        dead = messages[0].topic == self._settings.dead
        self._metrics.messages.labels("dead" if dead else "answered").inc()
        self._metrics.seconds.observe(time.perf_counter() - started)

    async def _insist(self, message: Outgoing) -> None:
        """Publishes until the broker has stored it: it may be away for a while."""
        pause = 0.1
        while True:
            try:
                self._metrics.duplicates.inc(await self._publish(message))
                return
            except MessageTooLarge:
                raise
            except Exception as error:
                self._metrics.retries.inc()
                what = f"{type(error).__name__}: {error}"[:300]
                log.warning("publishing failed", extra={"fields": {"error": what}})
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def give_back(self, error: Exception) -> None:
        """Counts and logs a message that is to be taken again."""
        self._metrics.messages.labels("returned").inc()
        log.error("returned", exc_info=error)
