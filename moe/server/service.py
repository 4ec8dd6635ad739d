"""One `POST /predict` from its bytes to its answer, over a model and a queue."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from moe.requests import Request
from moe.server.admission import (
    Asked,
    check_key,
    check_requests,
    check_type,
    parse_body,
    read_body,
)
from moe.server.batcher import Answer, QueueFull
from moe.server.edge import CLIENT_GONE, Note
from moe.server.engine import MODEL_HASH, Engine
from moe.server.errors import failed, overloaded, too_large, unhealthy
from moe.server.metrics import HttpMetrics
from moe.server.model import Served
from moe.server.settings import Settings

log = logging.getLogger("moe.server")


class Service:
    """The model with its queue.

    Args:
        served: The model.
        settings: Limits, keys, what to log.
        version: Of this project, for the metrics.

    Attributes:
        engine: What answers.
        http: Metrics of the HTTP side.
        draining: Set at SIGTERM: what was accepted is answered, nothing new is taken.
    """

    def __init__(self, served: Served, settings: Settings, version: str) -> None:
        self.engine = Engine(served, settings, version)
        self.settings = settings
        self.draining = False
        self.batcher = self.engine.batcher
        self.http = HttpMetrics(self.engine.metrics.registry)

    @property
    def served(self) -> Served:
        """The model that new requests get."""
        return self.engine.served

    async def predict(self, request: HttpRequest) -> Response:
        """Answers the requests of a body.

        Raises:
            Refusal: They are not answered; see `admission` and `errors`.
        """
        note: Note = request.state.note
        try:
            body = await self.admit(request)
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        served = self.served  # one model checks, counts and answers, also if it is replaced now
        asked = check_requests(parse_body(body), self.settings.limits, served.tasks)
        tokens = await self._count(asked.requests, served)
        note.fields |= {"items": len(tokens), "tokens": sum(tokens)}
        outcomes = await self._outcomes(request, self._submit(asked.requests, tokens, served))
        if outcomes is None:
            return Response(status_code=CLIENT_GONE)
        answers = [_checked(outcome, note) for outcome in outcomes]
        for answer in answers:
            answer.pop("explanation", None)  # was for telemetry
        self._note(note, asked, answers)
        # No NaN, which is no JSON; and whatever UTF-8 cannot hold becomes a question mark.
        text = json.dumps(
            answers if asked.many else answers[0], ensure_ascii=False, allow_nan=False
        )
        return Response(
            text.encode("utf-8", "replace"),
            media_type="application/json",
            headers={} if served.hash is None else {MODEL_HASH: served.hash},
        )

    async def admit(self, request: HttpRequest) -> bytes:
        """The body of a request that may be answered.

        Raises:
            Refusal: Its key, type or size, or the state of the server.
        """
        limits = self.settings.limits
        check_key(request.headers.get("authorization"), self.settings.api_keys)
        check_type(request.headers)
        if self.draining:
            raise unhealthy("the server is shutting down")
        if self.batcher.full:  # before the body is read: a refusal has to be cheap
            raise overloaded(self.batcher.retry_after())
        return await read_body(request.stream(), request.headers.get("content-length"), limits)

    async def answer(self, request: Request, served: Served) -> Answer:
        """The answer of a model to one request, after what waits.

        Raises:
            Refusal: The queue is full, or the request is too long.
        """
        tokens = await self._count([request], served)
        answer: Answer = await self._submit([request], tokens, served)[0]
        return answer

    async def _count(self, requests: Sequence[Request], served: Served) -> list[int]:
        tokens = await self.engine.count(requests, served)
        most = self.settings.limits.queue_tokens
        if sum(tokens) > most:
            raise too_large(f"{sum(tokens)} tokens, at most {most} at once (--max-queue-tokens)")
        return tokens

    def _submit(
        self, requests: Sequence[Request], tokens: Sequence[int], served: Served
    ) -> list[asyncio.Future[Answer]]:
        try:
            return self.engine.submit(requests, tokens, served)
        except QueueFull as error:
            raise overloaded(error.retry_after) from error

    async def _outcomes(
        self, request: HttpRequest, futures: list[asyncio.Future[Answer]]
    ) -> list[Answer | BaseException] | None:
        """For each request its answer or what was raised; None if the client has gone."""
        answered = asyncio.gather(*futures, return_exceptions=True)
        gone = asyncio.ensure_future(_disconnected(request))
        either: set[asyncio.Future[Any]] = {answered, gone}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            return answered.result() if answered.done() else None
        finally:
            gone.cancel()
            if not answered.done():
                self.http.gone.inc(self.batcher.discard(futures))

    def _note(self, note: Note, asked: Asked, answers: Sequence[Answer]) -> None:
        note.fields["tasks"] = sorted({task for answer in answers for task in answer["answers"]})
        note.fields["abstained"] = sum(answer["abstained"] for answer in answers)
        if self.settings.log_texts:
            requests = [asdict(request) for request in asked.requests]
            note.fields |= {"requests": requests, "answers": answers}


async def _disconnected(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _checked(outcome: Answer | BaseException, note: Note) -> Answer:
    if isinstance(outcome, BaseException):
        log.error("the model failed", exc_info=outcome, extra={"fields": {"id": note.id}})
        raise failed(note.id)
    return outcome
