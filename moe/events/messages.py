"""What is taken from a broker and what is published: bytes and names, without a broker."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moe.requests import Request
from moe.server.admission import check_request, parse_body
from moe.server.errors import invalid, too_large
from moe.server.settings import Limits
from moe.types import TaskSpec

LONGEST_REASON = 500  # characters: a reason may quote a field
# Of a dead message, in its letter: JSON may write six bytes for one, brokers refuse a million.
KEPT_BYTES = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Taken:
    """A message that was taken and not yet acknowledged.

    Attributes:
        body: As it came.
        place: Where it lies: the same when it is taken again, and of no other message.
        deliveries: Times that it was taken, this one included; 1 where the broker does not count.
    """

    body: bytes
    place: str
    deliveries: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Outgoing:
    """A message to publish.

    Attributes:
        topic: Where.
        key: Of the request that it answers: two with one topic and key are one answer, twice.
        body: JSON.
        headers: Texts by name.
    """

    topic: str
    key: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Equal for messages of one topic and key, in characters that every header may hold."""
        return hashlib.sha256(f"{self.topic}\0{self.key}".encode("utf-8", "replace")).hexdigest()


def read_request(body: bytes, limits: Limits, tasks: Sequence[TaskSpec]) -> Request:
    """The request of a message.

    Raises:
        Refusal: It is too large, no JSON, or no request.
    """
    if len(body) > limits.body:
        raise too_large(f"{len(body)} bytes, at most {limits.body} in a message (--max-body)")
    value = parse_body(body)
    if isinstance(value, list):
        raise invalid(f"expected one request in a message, got a list of {len(value)}")
    return check_request(value, limits, tasks)


def key_of(request: Request, taken: Taken) -> str:
    """What makes a request the same request: its id, or else its place."""
    return request.id or taken.place


def answer_messages(
    answer: Mapping[str, Any], key: str, *, topic: str, per_task: bool, headers: Mapping[str, str]
) -> list[Outgoing]:
    """What to publish as the answer to a request.

    Args:
        answer: The answer form.
        key: Of the request; stands as `id` in the answer.
        topic: Of the answers.
        per_task: Whether each task has a message of its own, in `TOPIC.TASK`; an abstained answer
            goes to `TOPIC`.
        headers: Of every message.
    """
    answer = {"id": key} | {name: value for name, value in answer.items() if name != "id"}
    parts = {topic: answer}
    if per_task and not answer["abstained"]:
        parts = {f"{topic}.{task}": _only(answer, task) for task in answer["answers"]}
    return [
        Outgoing(topic=where, key=key, body=_json(part), headers=headers)
        for where, part in parts.items()
    ]


def _only(answer: Mapping[str, Any], task: str) -> dict[str, Any]:
    """What one task says."""
    routing = [entry for entry in answer["routing"] if entry["task"] == task]
    return {**answer, "routing": routing, "answers": {task: answer["answers"][task]}}


def dead_letter(taken: Taken, *, topic: str, source: str, error_type: str, reason: str) -> Outgoing:
    """A message that is given up, with the reason and its first `KEPT_BYTES`.

    Args:
        taken: The message.
        topic: Of the dead letters.
        source: Topic that it came from.
        error_type, reason: As the server words them.
    """
    kept = taken.body[:KEPT_BYTES]
    try:
        body, encoding = kept.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        body, encoding = base64.b64encode(kept).decode("ascii"), "base64"
    letter = {
        "reason": reason[:LONGEST_REASON],
        "error_type": error_type,
        "topic": source,
        "place": taken.place,
        "deliveries": taken.deliveries,
        "bytes": len(taken.body),
        "encoding": encoding,
        "body": body,
    }
    return Outgoing(topic=topic, key=taken.place, body=_json(letter))


def _json(value: Mapping[str, Any]) -> bytes:
    """Without NaN, which is no JSON; what UTF-8 cannot hold becomes a question mark.

    Raises:
        ValueError: A number is not finite.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace")
