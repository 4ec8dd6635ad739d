"""The process: loads, listens, drains at SIGTERM, and says how it ended."""

from __future__ import annotations

import logging
import signal
import socket
import time
from types import FrameType
from typing import Any

import uvicorn

from moe.server.app import build_app
from moe.server.engine import own_version
from moe.server.logs import log_json
from moe.server.model import load
from moe.server.service import Service
from moe.server.settings import Settings, settings_of
from moe.types import InputError

# Seconds in which a draining server still answers 503, so that idle connections hear that they end.
_LINGER = 0.5
# Longer than the 60 s after which common proxies drop an idle connection: the side that closes
# first must be the one that sends.
_KEEP_ALIVE = 75

log = logging.getLogger("moe.server")


class DrainingServer(uvicorn.Server):
    """Uvicorn that finishes what was accepted before it stops to listen.

    Args:
        config: Of uvicorn.
        service: Is told to take nothing more.

    Attributes:
        signal: The first one that came, 0 before.
        unanswered: Accepted requests that it gave up.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self.signal = 0
        self.unanswered = 0
        self._until = 0.0
        self._from = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and says so."""
        assert sockets
        await super().startup(sockets)
        host, port = sockets[0].getsockname()[:2]
        served = self.service.served
        fields = {"host": host, "port": port, "model": served.name, "backend": served.backend}
        log.info("listening", extra={"fields": fields})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal begins to drain, the second ends at once."""
        if self.signal:
            self.unanswered = self.service.batcher.unanswered
            self.should_exit = self.force_exit = True
            return
        self.signal = sig
        self.service.draining = True
        self._from = time.monotonic() + _LINGER
        self._until = time.monotonic() + self.service.settings.limits.grace_seconds

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: whether to stop listening."""
        now = time.monotonic()
        if self.signal and not self.should_exit:
            waiting = self.service.batcher.unanswered
            if now >= self._until or (now >= self._from and not waiting):
                self.should_exit, self.unanswered = True, waiting
            self.config.timeout_graceful_shutdown = max(1, int(self._until - now))
        return await super().on_tick(counter)


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, before the model is loaded: a taken port should not cost that time.

    Raises:
        InputError: The address cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}, port {port} ({error.strerror}): choose others with --host "
            "and --port"
        ) from error
    return bound


def serve(settings: Settings) -> int:
    """Serves until a signal; returns the exit code.

    0 after SIGTERM, 130 after SIGINT, 1 if accepted requests were not answered in time.

    Raises:
        InputError: There is no model, or the address is taken.
    """
    bound = listen(settings.host, settings.port)
    served = load(settings)
    log_json()
    service = Service(served, settings, own_version())
    config = uvicorn.Config(
        build_app(service),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_keep_alive=_KEEP_ALIVE,
    )
    server = DrainingServer(config, service)
    server.run(sockets=[bound])
    return _exit_code(server)


def _exit_code(server: DrainingServer) -> int:
    fields = {"signal": server.signal, "unanswered": server.unanswered}
    log.info("stopped", extra={"fields": fields})
    if server.unanswered:
        return 1
    return 130 if server.signal == signal.SIGINT else 0


def answer(values: dict[str, Any]) -> int:
    """Serves as the values of the command line, by destination, say; returns the exit code.

    Raises:
        InputError: As `serve`; a value is wrong.
    """
    return serve(settings_of(values))
