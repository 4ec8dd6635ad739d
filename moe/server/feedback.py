"""`POST /feedback`: a correction goes to quarantine with what the model says of the request."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request as HttpRequest

from moe.feedback import Quarantine, QuotaReached, hold, parse_correction, source_of_key
from moe.server.admission import parse_body
from moe.server.errors import Refusal, invalid
from moe.server.service import Service
from moe.types import InputError


def source_of(request: HttpRequest) -> str:
    """Who sends: the key it came with, without telling the key, or else the address."""
    header = request.headers.get("authorization", "")
    key = header.partition(" ")[2].strip()
    if key:
        return source_of_key(key)
    return f"address-{request.client.host if request.client else 'unknown'}"


async def take(service: Service, quarantine: Quarantine, request: HttpRequest) -> dict[str, Any]:
    """Keeps a correction; what `/feedback` answers.

    Raises:
        Refusal: It is malformed, its source has sent its share of the day, or the model is busy.
    """
    value = parse_body(await service.admit(request))
    served = service.served
    try:
        correction, asked = parse_correction(value, served.tasks)
    except InputError as error:
        raise invalid(str(error)) from error
    source = source_of(request)
    try:
        quarantine.admit(source)
    except QuotaReached as error:
        raise Refusal(
            status=429, type="Overloaded", reason=str(error), headers={"Retry-After": "3600"}
        ) from error
    answer: Mapping[str, Any] = await service.answer(asked, served)
    spec = next(task for task in served.tasks if task.name == correction.task)
    said = answer["answers"][spec.name]
    held = hold(correction, spec, source=source, model=served.hash or "", said=said)
    await asyncio.to_thread(quarantine.keep, held)
    request.state.note.fields |= {"source": source, "task": spec.name}
    return {"status": "held", "agrees": not held.contradicts}
