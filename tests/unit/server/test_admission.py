"""What the server makes of the bytes of a body."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from moe.requests import Request
from moe.server.admission import check_key, check_requests, check_type, parse_body, read_body
from moe.server.errors import Refusal
from moe.server.settings import Limits
from moe.types import TaskSpec

TASKS = (
    TaskSpec(name="mood", type="classifier", num_experts=1, labels=("bad", "good")),
    TaskSpec(name="qa", type="span", num_experts=1),
)
LIMITS = Limits(items=3, characters=20, body=100, body_seconds=1)


def admitted(body: bytes) -> Any:
    return check_requests(parse_body(body), LIMITS, TASKS)


def test_the_three_forms() -> None:
    one = admitted(b'{"text": "good", "id": "7", "tasks": ["mood"]}')
    assert not one.many and one.requests == [Request(text="good", id="7", tasks=("mood",))]
    assert admitted(b'"good"').requests == [Request(text="good")]
    for many in (b'[{"text": "a"}, "b"]', b'{"requests": [{"text": "a"}, "b"]}'):
        assert admitted(many).many
        assert admitted(many).requests == [Request(text="a"), Request(text="b")]


DEEP = 100_000
REFUSED = {
    "nothing": (b"", 400, "empty"),
    "blanks": (b" \n", 400, "empty"),
    "no JSON": (b"{text: 1}", 400, "no JSON"),
    "cut off": (b'{"text": "a', 400, "no JSON"),
    "not UTF-8": (b'{"text": "\xff"}', 400, "byte 10"),
    "UTF-16": ('{"text": "a"}'.encode("utf-16"), 400, "UTF-8"),
    "raw NUL": (b'{"text": "a\0b"}', 400, "no JSON"),
    "NaN": (b'{"text": NaN}', 400, "NaN"),
    "many digits": (b'{"text": ' + b"9" * 5000 + b"}", 400, "no JSON"),
    "deep list": (b"[" * DEEP + b"]" * DEEP, 400, "nested"),
    "deep object": (b'{"text":' * DEEP + b"1" + b"}" * DEEP, 400, "nested"),
    "deep text": (b'{"text":' + b"[" * 600 + b"]" * 600 + b"}", 422, "text"),
    "no requests": (b"[]", 400, "empty"),
    "no requests in an object": (b'{"requests": []}', 400, "empty"),
    "requests and more": (b'{"requests": ["a"], "text": "b"}', 422, "requests"),
    "requests of one": (b'{"requests": {"text": "b"}}', 422, "list"),
    "number": (b"7", 422, "got int 7"),
    "null": (b"null", 422, "NoneType"),
    "list in a list": (b'[["a"]]', 422, "requests[0]"),
    "no text": (b'{"context": "a"}', 422, "text"),
    "empty text": (b'{"text": "  "}', 422, "text is empty"),
    "text of a number": (b'{"text": 5}', 422, "got 5"),
    "unknown field": (b'{"text": "a", "txt": 1}', 422, "'txt'"),
    "surrogate": (rb'{"text": "a\ud800"}', 422, "surrogate at character 1"),
    "surrogate in an id": (rb'{"text": "a", "id": "\udfff"}', 422, "id holds a lone"),
    "NUL": (rb'{"text": "a", "context": "b\u0000"}', 422, "context holds a NUL"),
    "NUL in a list": (rb'["a", "\u0000"]', 422, "requests[1]"),
    "no such task": (b'{"text": "a", "tasks": ["weather"]}', 422, "weather"),
    "surrogate in a task": (rb'{"text": "a", "tasks": ["\ud800"]}', 422, "ud800"),
    "task of a number": (b'{"text": "a", "tasks": [1]}', 422, "tasks"),
    "no passage": (b'{"text": "a", "tasks": ["qa"]}', 422, "context"),
    "id of a number": (b'{"text": "a", "id": 7}', 422, "id must be a string"),
    "four requests": (b'["a", "b", "c", "d"]', 413, "at most 3"),
    "21 characters": (json.dumps({"text": "a" * 10, "context": "b" * 11}).encode(), 413, "21"),
    "long id": (json.dumps({"text": "a", "id": "b" * 20}).encode(), 413, "21"),
}


@pytest.mark.parametrize(("body", "status", "part"), REFUSED.values(), ids=REFUSED.keys())
def test_malformed_bodies_are_refused_with_a_reason(body: bytes, status: int, part: str) -> None:
    with pytest.raises(Refusal) as error:
        admitted(body)
    assert error.value.status == status
    content = error.value.content()
    assert part in content["error"] and len(content["error"]) <= 500
    assert content["error_type"] in ("Validation", "Empty")
    json.dumps(content).encode("ascii")


def test_a_passage_in_another_script_counts_characters_not_bytes() -> None:
    assert admitted(json.dumps({"text": "é" * 20}, ensure_ascii=False).encode()).requests
    smile = [Request(text="\U0001f600")]
    assert admitted('{"text": "\U0001f600"}'.encode()).requests == smile
    assert admitted(rb'{"text": "\ud83d\ude00"}').requests == smile


async def chunks(*sizes: int, pause: float = 0.0) -> AsyncIterator[bytes]:
    for size in sizes:
        await asyncio.sleep(pause)
        yield b"x" * size


def test_bodies_up_to_the_limit() -> None:
    assert asyncio.run(read_body(chunks(60, 40), "100", LIMITS)) == b"x" * 100
    assert asyncio.run(read_body(chunks(60, 40), None, LIMITS)) == b"x" * 100


@pytest.mark.parametrize("announced", ["101", None, "9" * 5000])
def test_larger_bodies_are_refused(announced: str | None) -> None:
    with pytest.raises(Refusal) as error:
        asyncio.run(read_body(chunks(60, 41), announced, LIMITS))
    assert error.value.status == 413 and "100 bytes" in error.value.reason


def test_a_body_that_trickles_is_not_waited_for() -> None:
    limits = Limits(body_seconds=1)
    with pytest.raises(Refusal) as error:
        asyncio.run(read_body(chunks(1, 1, pause=0.8), None, limits))
    assert error.value.status == 408 and "1 s" in error.value.reason


@pytest.mark.parametrize("header", ["Bearer right", "bearer also"])
def test_known_keys_pass(header: str) -> None:
    check_key(header, (b"right", b"also"))
    check_key(None, ())


OTHERS = [None, "", "Bearer", "Bearer wrong", "Basic right", "right", "é"]


@pytest.mark.parametrize("header", OTHERS)
def test_other_keys_do_not(header: str | None) -> None:
    with pytest.raises(Refusal) as error:
        check_key(header, (b"right",))
    assert error.value.status == 401 and error.value.headers["WWW-Authenticate"] == "Bearer"


def test_the_type_must_be_json() -> None:
    check_type({"content-type": "application/json; charset=utf-8"})
    for given in ({}, {"content-type": "text/plain"}, {"content-type": "application/x-www-form"}):
        with pytest.raises(Refusal) as error:
            check_type(given)
        assert error.value.status == 415
