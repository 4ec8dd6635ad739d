"""From the bytes of a body to requests that the model can answer; whatever else is refused."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from moe.requests import Request, parse_request
from moe.server.errors import Refusal, empty, invalid, too_large, unauthorized, unreadable
from moe.server.settings import Limits
from moe.types import InputError, TaskSpec

_NOT_TEXT = re.compile("[\0\ud800-\udfff]")
_TEXT_FIELDS = ("text", "context", "id")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The content of a body.

    Attributes:
        requests: At least one, each checked.
        many: Whether a list was asked, so that a list is answered.
    """

    requests: list[Request]
    many: bool


def check_key(header: str | None, keys: Sequence[bytes]) -> None:
    """Compares the bearer token with every key, in a time that tells nothing about them.

    Raises:
        Refusal: 401, if there are keys and none fits.
    """
    scheme, _, given = (header or "").partition(" ")
    # Digests, because comparing keys of different lengths would tell the length.
    digest = hashlib.sha256(given.strip().encode("latin-1", "replace")).digest()
    fits = [hmac.compare_digest(digest, hashlib.sha256(key).digest()) for key in keys]
    if keys and not (any(fits) and scheme.lower() == "bearer"):
        raise unauthorized()


def check_type(headers: Mapping[str, str]) -> None:
    """Only JSON: a browser sends it to another site after a preflight alone.

    Raises:
        Refusal: 415.
    """
    given = headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "application/json":
        raise Refusal(
            status=415,
            type="Validation",
            reason=f"expected Content-Type: application/json, got {given!r:.60}",
        )


async def read_body(chunks: AsyncIterator[bytes], announced: str | None, limits: Limits) -> bytes:
    """The whole body.

    Args:
        chunks: As they arrive.
        announced: The header Content-Length.
        limits: For bytes and seconds.

    Raises:
        Refusal: 413 before anything is parsed, 408 if it takes too long.
    """
    # What is left of a refused body uvicorn reads and drops, so that the client sees the reason.
    reason = f"the body is larger than {limits.body} bytes (--max-body)"
    if announced and announced.isdecimal() and int(announced[:18]) > limits.body:
        raise too_large(reason)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in chunks:
                body += chunk
                if len(body) > limits.body:
                    raise too_large(reason)
    except TimeoutError as error:
        raise Refusal(
            status=408,
            type="Validation",
            reason=f"the body did not arrive within {limits.body_seconds:g} s",
            headers={"Connection": "close"},
        ) from error
    return bytes(body)


def parse_body(body: bytes) -> Any:
    """The JSON value of a body.

    Raises:
        Refusal: 400, not JSON.
    """
    if not body.strip():
        raise empty('the body is empty: expected {"text": ...} or a list of such')
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise unreadable(f"the body is not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise unreadable("the JSON is nested too deeply") from error
    except ValueError as error:  # also an integer with too many digits
        raise unreadable(f"the body is no JSON: {error}"[:200]) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not allowed")


def check_requests(value: Any, limits: Limits, tasks: Sequence[TaskSpec]) -> Asked:
    """The requests of a parsed body: one, a list, or `{"requests": [...]}`.

    Raises:
        Refusal: 400 if there is none, 413 if a limit is passed, 422 if one is malformed.
    """
    listed = value
    if isinstance(value, dict) and "requests" in value:
        listed = value["requests"]
        if len(value) > 1 or not isinstance(listed, list):
            raise invalid('expected {"requests": [...]} with a list and nothing beside it')
    many = isinstance(listed, list)
    items = listed if many else [value]
    if not items:
        raise empty("the list of requests is empty")
    if len(items) > limits.items:
        raise too_large(f"{len(items)} requests, at most {limits.items} in one body (--max-items)")
    requests = [
        check_request(item, limits, tasks, f"requests[{index}]: " if many else "")
        for index, item in enumerate(items)
    ]
    return Asked(requests=requests, many=many)


def check_request(
    value: Any, limits: Limits, tasks: Sequence[TaskSpec], where: str = ""
) -> Request:
    """One request of a parsed body.

    Args:
        value: Any JSON value.
        limits: For characters.
        tasks: Of the model.
        where: Begins the reason of a refusal.

    Raises:
        Refusal: 413 if it is too long, 422 if it is malformed.
    """
    request = {"text": value} if isinstance(value, str) else value
    fields = request if isinstance(request, dict) else {}
    texts = {name: fields[name] for name in _TEXT_FIELDS if isinstance(fields.get(name), str)}
    length = sum(map(len, texts.values()))
    if length > limits.characters:
        raise too_large(
            f"{where}{length} characters, at most {limits.characters} in text, context and id "
            "together (--max-characters)"
        )
    for name, text in texts.items():
        if found := _NOT_TEXT.search(text):
            what = "a NUL" if found[0] == "\0" else "a lone surrogate"
            raise invalid(f"{where}request: {name} holds {what} at character {found.start()}")
    try:
        return parse_request(request, tasks)
    except InputError as error:
        raise invalid(f"{where}{error}") from error
    except RecursionError as error:  # of the value that the message would have shown
        raise invalid(f"{where}request: a field is nested too deeply") from error
