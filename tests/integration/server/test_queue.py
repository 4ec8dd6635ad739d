"""What waits, what is refused, what is dropped, and the drain at SIGTERM."""

from __future__ import annotations

import json
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from moe.server.logs import JsonFormatter


def hold(server: Any, until: Any) -> ThreadPoolExecutor:
    """Clients in threads, after one has occupied the worker."""
    clients = ThreadPoolExecutor(8)
    server.model.free.clear()
    clients.submit(server.client.predict, {"text": "first"})
    until(lambda: server.model.batches != [])
    return clients


def test_a_full_queue_refuses_at_once_and_loses_nothing(here: Any, until: Any) -> None:
    with hold(here, until) as clients:
        accepted = [clients.submit(here.client.predict, {"text": "a"}) for _ in range(4)]
        until(lambda: here.service.batcher.items == 4)
        assert here.client.metric("moe_queue_items") == 4
        reply = here.client.predict({"text": "b"})
        assert (reply.status, reply.json["error_type"]) == (429, "Overloaded")
        assert int(reply.headers["retry-after"]) >= 1
        here.model.free.set()
        assert [done.result().status for done in accepted] == [200] * 4
    assert here.model.batches == [["first"], ["a"] * 4]


def test_a_list_that_does_not_fit_is_refused_whole(here: Any, until: Any) -> None:
    with hold(here, until) as clients:
        accepted = clients.submit(here.client.predict, ["a", "b"])
        until(lambda: here.service.batcher.items == 2)
        assert here.client.predict(["c", "d", "e"]).status == 429
        here.model.free.set()
        assert accepted.result().status == 200


def test_work_of_a_client_that_left_is_dropped(here: Any, until: Any) -> None:
    with hold(here, until):
        body = b'["gone", "too"]'
        with socket.create_connection(("127.0.0.1", here.client.port)) as connection:
            connection.sendall(
                b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            until(lambda: here.service.batcher.items == 2)
        until(lambda: here.service.batcher.items == 0)
        here.model.free.set()
    assert here.client.predict({"text": "next"}).status == 200
    assert here.model.batches == [["first"], ["next"]]
    assert here.client.metric("moe_requests_discarded_total") == 2
    assert here.client.metric('moe_http_requests_total{path="/predict",status="499"}') == 1


def test_a_failing_request_fails_alone(
    here: Any, until: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with hold(here, until) as clients:
        asked = [clients.submit(here.client.predict, {"text": t}) for t in ("a", "boom", "c")]
        until(lambda: here.service.batcher.items == 3)
        here.model.free.set()
        replies = [done.result() for done in asked]
    assert [reply.status for reply in replies] == [200, 500, 200]
    number = replies[1].headers["x-request-id"]
    assert replies[1].json["error_type"] == "Backend" and number in replies[1].json["error"]
    assert "boom" not in replies[1].json["error"]
    [record] = [r for r in caplog.records if r.exc_info]
    line = json.loads(JsonFormatter().format(record))
    assert line["id"] == number and "boom on the way" in line["traceback"]
    assert here.client.predict({"text": "after"}).status == 200
    assert here.client.get("/livez").status == 200
    assert here.client.metric("moe_failures_total") == 1


def test_draining_takes_nothing_new(here: Any, until: Any) -> None:
    with hold(here, until) as clients:
        accepted = clients.submit(here.client.predict, {"text": "a"})
        until(lambda: here.service.batcher.items == 1)
        assert here.client.get("/readyz").status == 200
        here.server.handle_exit(signal.SIGTERM, None)
        for reply in (here.client.get("/readyz"), here.client.predict({"text": "b"})):
            assert (reply.status, reply.json["error_type"]) == (503, "Unhealthy")
            assert reply.headers["connection"] == "close"
        assert here.client.get("/livez").status == 200
        here.model.free.set()
        assert accepted.result().status == 200
