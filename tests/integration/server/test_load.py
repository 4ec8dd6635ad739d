"""Thousands of malformed bodies, and a minute of four times what the model can answer."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytestmark = pytest.mark.slow
GOOD = {"id": "7", "text": "who built it?", "context": "by Ada", "tasks": ["qa"]}
WRONG = (None, True, -1, 1e308, 10**400, "", " \n", "\0", "\ud800", [], {}, ["\udfff"], "weather")


def malformed(kind: int, draw: random.Random) -> bytes:
    """A body that is no request; a scrambled one may be by chance."""
    good = json.dumps(GOOD).encode()
    at, depth = draw.randrange(len(good)), draw.randrange(1, 200_000)
    match kind:
        case 0:
            return draw.randbytes(draw.randrange(200))
        case 1:
            return good[:at]
        case 2:
            return good[:at] + draw.randbytes(1) + good[at + 1 :]
        case 3:
            return draw.choice([b"[" * depth + b"]" * depth, b'{"text":' * depth + b"}" * depth])
        case 4:
            field = draw.choice([*GOOD, "txt", "\ud800"])
            return json.dumps({**GOOD, field: draw.choice(WRONG)}).encode()
        case 5:
            return json.dumps([draw.choice(WRONG)] * draw.randrange(4)).encode()
        case 6:
            return json.dumps(draw.choice([["a"] * 33, {"requests": GOOD}])).encode()
        case 7:
            return b"[" + b" " * draw.choice([3_000_000, 10_000_000]) + b"]"
        case _:
            return good.decode().encode(draw.choice(["utf-16", "utf-32", "cp037"]))


def test_malformed_bodies_never_break_it(running: Any) -> None:
    seen: Counter[int] = Counter()
    draw = random.Random(0)
    with running() as server:
        for turn in range(5000):
            body = malformed(turn % 9, draw)
            reply = server.client.predict(body)
            seen[reply.status] += 1
            assert 400 <= reply.status < 500 or reply.status == 200, body[:100]
            assert reply.status == 200 or reply.json["error"], body[:100]
        assert server.client.predict(GOOD).status == 200
        assert server.client.get("/livez").status == 200
    print(dict(seen))
    assert seen[200] < 500


def test_overload_costs_no_goodput(running: Any) -> None:
    capacity, seconds = 20, 60  # requests/s, by a model that takes 1/20 s for each
    took: dict[int, list[float]] = {200: [], 429: []}

    def ask(client: Any, at: float) -> None:
        time.sleep(max(0.0, at - time.monotonic()))
        began = time.monotonic()
        reply = client.predict("a")
        took[reply.status].append(time.monotonic() - began)
        assert reply.status == 200 or int(reply.headers["retry-after"]) >= 1

    with running(queue_items=16, items=16) as server, ThreadPoolExecutor(64) as clients:
        server.model.seconds = 1 / capacity
        start = time.monotonic()
        asked = [
            clients.submit(ask, server.client, start + k / (4 * capacity))
            for k in range(4 * capacity * seconds)
        ]
        for done in asked:
            done.result()
        goodput = len(took[200]) / (time.monotonic() - start)
    refused = sorted(took[429])
    median, slow = refused[len(refused) // 2], refused[len(refused) * 99 // 100]
    print(f"{goodput:.1f} answers/s; 429 within {median * 1e3:.0f} ms, 99 % {slow * 1e3:.0f} ms")
    assert goodput >= 0.9 * capacity
    assert median < 0.05
