"""From a taken message to the messages that answer it; knows no broker."""

from __future__ import annotations

import asyncio
import logging

from moe.events.messages import (
    Outgoing,
    Taken,
    answer_messages,
    dead_letter,
    key_of,
    read_request,
)
from moe.events.settings import EventSettings
from moe.requests import Request
from moe.server.engine import MODEL_HASH, Engine
from moe.server.errors import Refusal
from moe.server.model import Served

_FIRST_PAUSE = 0.2  # seconds before the model is asked again, doubled each time

log = logging.getLogger("moe.server")


class Worker:
    """Answers messages with an engine.

    Args:
        engine: Started.
        settings: Topics and bounds.
    """

    def __init__(self, engine: Engine, settings: EventSettings) -> None:
        self._engine = engine
        self._settings = settings

    async def respond(self, taken: Taken) -> list[Outgoing]:
        """What to publish before a message is acknowledged: its answer, or a dead letter."""
        served = self._engine.served  # one model checks and answers, also if it is replaced now
        try:
            self._check_deliveries(taken)
            request = read_request(taken.body, self._settings.model.limits, served.tasks)
            return await self._ask(request, key_of(request, taken), served)
        except Refusal as refusal:
            return [self.give_up(taken, refusal)]

    def _check_deliveries(self, taken: Taken) -> None:
        most = self._settings.deliveries
        if taken.deliveries > most:
            raise Refusal(
                status=500,
                type="Backend",
                reason=f"taken {taken.deliveries} times and never acknowledged, at most {most} "
                "(--deliveries): it may end the process that reads it",
            )

    async def _ask(self, request: Request, key: str, served: Served) -> list[Outgoing]:
        """The answer of the model, which is asked again if it fails.

        Raises:
            Refusal: It failed every time.
        """
        pause, attempts = _FIRST_PAUSE, self._settings.attempts
        for attempt in range(1, attempts + 1):
            try:
                return await self._answer(request, key, served)
            except Exception as error:
                what = f"{type(error).__name__}: {error}"[:300]
                fields = {"key": key[:100], "attempt": attempt, "error": what}
                log.error("the model failed", extra={"fields": fields})
            if attempt < attempts:
                await asyncio.sleep(pause)
                pause *= 2
        raise Refusal(
            status=500, type="Backend", reason=f"the model failed {attempts} times: {what}"
        )

    async def _answer(self, request: Request, key: str, served: Served) -> list[Outgoing]:
        tokens = await self._engine.count([request], served)
        answer = await self._engine.submit([request], tokens, served)[0]
        answer.pop("explanation", None)  # was for telemetry
        return answer_messages(
            answer,
            key,
            topic=self._settings.answers,
            per_task=self._settings.per_task,
            headers={} if served.hash is None else {MODEL_HASH: served.hash},
        )

    def give_up(self, taken: Taken, refusal: Refusal) -> Outgoing:
        """The dead letter of a message."""
        fields = {"place": taken.place, "error_type": refusal.type, "reason": refusal.reason[:300]}
        log.warning("dead letter", extra={"fields": fields})
        return dead_letter(
            taken,
            topic=self._settings.dead,
            source=self._settings.requests,
            error_type=refusal.type,
            reason=refusal.reason,
        )
