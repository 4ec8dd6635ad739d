"""The process: loads, takes, drains at SIGTERM, and says how it ended."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server

from moe.events.embedded import nats_server
from moe.events.link import Link
from moe.events.metrics import EventMetrics
from moe.events.settings import EventSettings, settings_of, without_secret
from moe.events.worker import Worker
from moe.server.engine import Engine, own_version
from moe.server.logs import log_json
from moe.server.model import load
from moe.server.reload import watch
from moe.types import InputError

_LAG_SECONDS = 2.0
_DEMO_PORT = 4222

log = logging.getLogger("moe.server")


def link_class(settings: EventSettings) -> type[Link]:
    """The kind of link that the broker needs; imports its client alone.

    Raises:
        InputError: That client is not installed.
    """
    try:
        if settings.kind == "nats":
            from moe.events.nats import NatsLink

            return NatsLink
        from moe.events.kafka import KafkaLink

        return KafkaLink
    except ImportError as error:
        if (error.name or "").startswith("moe"):
            raise
        raise InputError(
            f"consume: no client for {settings.kind} ({error}): pip install -e '.[events]'"
        ) from error


def listen(settings: EventSettings, registry: CollectorRegistry) -> int:
    """Serves `/metrics`; returns the port.

    Raises:
        InputError: The port is taken.
    """
    host, port = settings.metrics_host, settings.metrics_port
    try:
        server, _ = start_http_server(port, host, registry)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}, port {port} ({error.strerror}): choose another "
            "--metrics-port"
        ) from error
    return int(server.server_port)


class Consumer:
    """A consumer from its start to its end.

    Args:
        settings: As given.
        engine: With a loaded model, not started.
    """

    def __init__(self, settings: EventSettings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine
        self._metrics = EventMetrics(engine.metrics.registry)
        worker = Worker(engine, settings)
        self._link = link_class(settings)(settings, worker, self._metrics)
        self._stop = asyncio.Event()
        self.signal = 0

    async def run(self) -> int:
        """Consumes until a signal; returns the exit code.

        Raises:
            InputError: The broker cannot be reached.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._signalled, number)
        port = listen(self._settings, self._engine.metrics.registry)
        self._engine.start()
        await self._link.start()
        helpers = [asyncio.create_task(self._watch_over()), asyncio.create_task(self._measure())]
        if self._settings.model.registry is not None:
            helpers.append(asyncio.create_task(watch(self._engine, self._settings.model.registry)))
        self._say_started(port)
        stopped = asyncio.create_task(self._stop.wait())
        failed = asyncio.create_task(self._link.failed.wait())
        await asyncio.wait([stopped, failed], return_when=asyncio.FIRST_COMPLETED)
        return await self._end(helpers)

    def _signalled(self, number: int) -> None:
        """The first signal begins to drain, the second ends at once."""
        if self.signal:
            os._exit(128 + number)
        self.signal = number
        self._stop.set()

    def _say_started(self, port: int) -> None:
        served, settings = self._engine.served, self._settings
        fields = {
            "broker": without_secret(settings.broker),
            "requests": settings.requests,
            "group": settings.group,
            "model": served.name,
            "backend": served.backend,
            "metrics_port": port,
        }
        log.info("consuming", extra={"fields": fields})

    async def _watch_over(self) -> None:
        """Tells the broker what is still worked on, and notices a dead worker thread."""
        while True:
            await asyncio.sleep(self._settings.ack_seconds / 3)
            if not self._engine.batcher.alive:
                log.error("the worker thread has ended")
                self._link.failed.set()
            try:
                await self._link.extend()
            except Exception as error:  # the broker is away: it will give them to someone again
                log.warning("extending failed", extra={"fields": {"error": repr(error)[:300]}})

    async def _measure(self) -> None:
        while True:
            try:
                self._metrics.lag.set(await self._link.lag())
            except Exception as error:  # the broker is away: the figure stays old
                log.debug("no lag", extra={"fields": {"error": repr(error)[:300]}})
            await asyncio.sleep(_LAG_SECONDS)

    async def _end(self, helpers: list[asyncio.Task[None]]) -> int:
        """Drains, closes, says how it ended."""
        try:
            await self._link.stop()
        except Exception as error:  # what is not acknowledged is taken by others
            log.error("stopping failed", exc_info=error)
        for helper in helpers:
            helper.cancel()
        unanswered = self._engine.batcher.unanswered
        self._engine.close()
        fields = {"signal": self.signal, "unanswered": unanswered}
        log.info("stopped", extra={"fields": fields})
        if unanswered or self._link.failed.is_set():
            return 1
        return 130 if self.signal == signal.SIGINT else 0


def consume(settings: EventSettings) -> int:
    """Consumes until a signal; returns the exit code.

    0 after SIGTERM, 130 after SIGINT, 1 if what was taken was not answered in time or the consumer
    could not go on. What is not acknowledged is never lost: the broker gives it to another.

    Raises:
        InputError: There is no model, no broker, or no client for it.
    """
    link_class(settings)  # a client that is missing should not cost the time of a model
    served = load(settings.model)
    log_json()

    async def main() -> int:
        return await Consumer(settings, Engine(served, settings.model, own_version())).run()

    return asyncio.run(main())


def demo(folder: str, values: dict[str, Any]) -> int:
    """Consumes from a NATS server of its own, which keeps its data in a folder.

    Raises:
        InputError: As `consume`; `nats-server` is not installed; a broker is named, too.
    """
    if "broker" in values:
        raise InputError(f"--demo {folder}: has a broker of its own, leave out --broker")
    with nats_server(Path(folder), _DEMO_PORT) as server:
        return consume(settings_of({**values, "broker": server.url}))


def answer(values: dict[str, Any]) -> int:
    """Consumes as the values of the command line, by destination, say; returns the exit code.

    Raises:
        InputError: As `consume`; a value is wrong.
    """
    if "demo" in values:
        return demo(values.pop("demo"), values)
    if "broker" not in values:
        raise InputError("consume: give --broker nats://HOST:PORT, or --demo FOLDER")
    return consume(settings_of(values))
