"""Bytes in, bytes out: requests, answers, dead letters."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from moe.events.messages import (
    KEPT_BYTES,
    Outgoing,
    Taken,
    answer_messages,
    dead_letter,
    key_of,
    read_request,
)
from moe.requests import Request
from moe.server.errors import Refusal
from moe.server.settings import Limits
from moe.types import TaskSpec

TASKS = (TaskSpec(name="mood", type="classifier", num_experts=1, labels=("bad", "good")),)
LIMITS = Limits(body=60, characters=20)


def test_a_message_is_the_request_of_the_server() -> None:
    request = read_request(b'{"id": "7", "text": "good film", "tasks": ["mood"]}', LIMITS, TASKS)
    assert request == Request(text="good film", id="7", tasks=("mood",))
    assert read_request(b'"good film"', LIMITS, TASKS) == Request(text="good film")


@pytest.mark.parametrize(("body", "part"), [
    (b" " * 61, "61 bytes, at most 60 in a message"),  # before anything is parsed
    (b"good film", "no JSON"),
    (b"\xff", "not UTF-8"),
    (b"", "empty"),
    (b'["a", "b"]', "expected one request in a message, got a list of 2"),
    (b'{"requests": []}', "unknown field 'requests'"),
    (b'{"text": 1}', "text must be a string, got 1"),
    (b'"123456789012345678901"', "21 characters, at most 20"),
])
def test_whatever_is_no_request_is_refused(body: bytes, part: str) -> None:
    with pytest.raises(Refusal) as caught:
        read_request(body, LIMITS, TASKS)
    assert part in caught.value.reason


def test_the_key_is_the_id_or_else_the_place() -> None:
    taken = Taken(body=b"", place="stream/5")
    assert key_of(Request(text="a", id="7"), taken) == "7"
    assert key_of(Request(text="a"), taken) == key_of(Request(text="a", id=""), taken) == "stream/5"


def entry(task: str) -> dict[str, Any]:
    return {"task": task, "probability": 0.5, "experts": [{"name": f"{task}-0", "weight": 1.0}]}


ANSWER: dict[str, Any] = {
    "abstained": False,
    "routing": [entry("mood"), entry("topic")],
    "answers": {"mood": {"label": "good"}, "topic": {"label": "art"}},
}


def test_an_answer_is_one_message_with_the_key_as_its_id() -> None:
    (message,) = answer_messages(ANSWER, "k", topic="out", per_task=False, headers={"h": "1"})
    assert (message.topic, message.key, message.headers) == ("out", "k", {"h": "1"})
    assert json.loads(message.body) == {"id": "k", **ANSWER}


def test_a_topic_for_each_task_holds_what_that_task_says() -> None:
    mood, topic = answer_messages(ANSWER, "k", topic="out", per_task=True, headers={})
    assert (mood.topic, topic.topic) == ("out.mood", "out.topic")
    assert json.loads(topic.body) == {
        "id": "k", "abstained": False, "routing": [entry("topic")],
        "answers": {"topic": {"label": "art"}},
    }
    assert mood.digest != topic.digest


def test_an_abstained_answer_has_no_task() -> None:
    answer = {"abstained": True, "routing": [entry("mood")], "answers": {}, "reason": "fits none"}
    (message,) = answer_messages(answer, "k", topic="out", per_task=True, headers={})
    assert message.topic == "out" and json.loads(message.body)["reason"] == "fits none"


def test_an_answer_that_is_no_json_raises() -> None:
    answer = {**ANSWER, "answers": {"mood": {"score": float("nan")}}}
    with pytest.raises(ValueError, match="not JSON compliant"):
        answer_messages(answer, "k", topic="out", per_task=False, headers={})


def test_a_digest_is_of_topic_and_key_alone() -> None:
    one = Outgoing(topic="a", key="b", body=b"1")
    assert one.digest == Outgoing(topic="a", key="b", body=b"2", headers={"x": "y"}).digest
    others = {Outgoing(topic=t, key=k, body=b"1").digest for t, k in [("a", "c"), ("c", "b")]}
    assert one.digest not in others and len(others) == 2
    assert Outgoing(topic="a", key="\ud800", body=b"").digest.isalnum()


def letter_of(body: bytes) -> dict[str, Any]:
    message = dead_letter(Taken(body=body, place="s/5", deliveries=2), topic="dead", source="in",
                          error_type="Validation", reason="r" * 600)
    assert (message.topic, message.key) == ("dead", "s/5")
    found: dict[str, Any] = json.loads(message.body)
    return found


def test_a_dead_letter_says_why_and_holds_the_message() -> None:
    assert letter_of(b'{"text": ""}') == {
        "reason": "r" * 500, "error_type": "Validation", "topic": "in", "place": "s/5",
        "deliveries": 2, "bytes": 12, "encoding": "utf-8", "body": '{"text": ""}',
    }


def test_what_is_no_text_is_kept_as_base64() -> None:
    letter = letter_of(b"\xff\x00")
    assert letter["encoding"] == "base64" and base64.b64decode(letter["body"]) == b"\xff\x00"


def test_a_dead_letter_of_a_large_message_stays_below_what_brokers_take() -> None:
    letter = letter_of(b"\x01" * 900_000)  # JSON writes six characters for each
    assert letter["bytes"] == 900_000 and len(letter["body"]) == KEPT_BYTES
    assert len(json.dumps(letter)) < 1_000_000
