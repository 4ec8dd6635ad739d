"""Around every request: an id, headers, a line in the log."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from moe.server.metrics import HttpMetrics

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

CLIENT_GONE = 499  # nginx's number for a client that closed before its answer
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_PROBES = ("/livez", "/readyz", "/metrics")

log = logging.getLogger("moe.server")


@dataclass(kw_only=True)
class Note:
    """What is known of an HTTP request; the routes add to `fields`, the log prints it.

    Attributes:
        id: The client's own `X-Request-Id`, or a new one.
        status: Of the response, 0 before it has begun.
        fields: Further keys of the log line.
    """

    id: str
    status: int = 0
    fields: dict[str, Any] = field(default_factory=dict)


class Edge:
    """ASGI middleware.

    Args:
        app: What answers.
        metrics: Counts each request.
        closing: Whether connections shall end with their response.
    """

    def __init__(self, app: Application, metrics: HttpMetrics, closing: Callable[[], bool]) -> None:
        self._app = app
        self._metrics = metrics
        self._closing = closing

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Passes a request on; only HTTP has a note."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        note = Note(id=_request_id(scope))
        scope.setdefault("state", {})["note"] = note
        started = time.perf_counter()
        try:
            await self._app(scope, receive, self._marked(note, send))
        except Exception:
            # Starlette has answered 500 and raised again.
            log.exception("request failed", extra={"fields": {"id": note.id}})
        finally:
            seconds = time.perf_counter() - started
            self._metrics.request(scope["path"], note.status or CLIENT_GONE, seconds)
            _write(scope, note, seconds)

    def _marked(self, note: Note, send: Send) -> Send:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                note.status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", note.id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"cache-control", b"no-store"),
                    *([(b"connection", b"close")] if self._closing() else []),
                ]
            await send(message)

        return marked


def _request_id(scope: Message) -> str:
    given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
    return given if _ID.fullmatch(given) else uuid.uuid4().hex


def _write(scope: Message, note: Note, seconds: float) -> None:
    if scope["path"] in _PROBES and note.status < 400:
        return  # every few seconds, for ever
    line = {
        "id": note.id,
        "method": scope["method"],
        "path": scope["path"][:100],
        "status": note.status or CLIENT_GONE,
        "seconds": round(seconds, 4),
        **note.fields,
    }
    log.log(
        logging.ERROR if note.status >= 500 else logging.INFO, "request", extra={"fields": line}
    )
