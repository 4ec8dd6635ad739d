"""What the server answers, refuses, counts and logs."""

from __future__ import annotations

import io
import json
import logging
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

from moe.server.logs import log_json
from moe.server.settings import Limits, settings_of

ROOT = Path(__file__).parents[3]


# --- the forms --------------------------------------------------------------------------------


def test_one_request_gets_the_answer_of_python(here: Any, answer: Any) -> None:
    for request in ({"text": "a", "id": "7"}, {"text": "a", "context": "b"}, {"text": "code"}):
        reply = here.client.predict(request)
        assert (reply.status, reply.json) == (200, answer(**request))
        assert reply.headers["content-type"] == "application/json"


def test_a_list_gets_a_list_in_order(here: Any, answer: Any) -> None:
    asked = [{"text": "a", "id": "1"}, {"text": "b", "id": "2", "context": "c"}, "d"]
    expected = [answer(**asked[0]), answer(**asked[1]), answer(text="d")]
    assert here.client.predict(asked).json == expected
    assert here.client.predict({"requests": asked}).json == expected


def test_malformed_requests_are_the_clients_mistake(here: Any) -> None:
    deep = b"[" * 400 + b"]" * 400
    for body, status, kind in [
        (b"", 400, "Empty"),
        (b"[]", 400, "Empty"),
        (b"{", 400, "Validation"),
        (b'{"text": "\xff"}', 400, "Validation"),
        (deep, 422, "Validation"),
        (b'{"text":' + deep + b"}", 422, "Validation"),
        (rb'{"text": "\ud800"}', 422, "Validation"),
        (rb'{"text": "\u0000"}', 422, "Validation"),
        (b'{"text": 7}', 422, "Validation"),
        (b'{"text": "a", "tasks": ["x"]}', 422, "Validation"),
        (b'["a","a","a","a","a"]', 413, "Validation"),
        (json.dumps("a" * 51).encode(), 413, "Validation"),
        (b'{"text": "a"}' + b" " * 1000, 413, "Validation"),
        (json.dumps("a " * 21).encode(), 413, "Validation"),  # 21 tokens, 20 fit the queue
    ]:
        reply = here.client.predict(body)
        assert (reply.status, reply.json["error_type"]) == (status, kind), body[:50]
        assert reply.json["error"]
    assert here.client.predict(b"{}", **{"Content-Type": "text/plain"}).status == 415
    assert here.model.batches == []
    assert here.client.predict({"text": "a"}).status == 200


def test_a_large_body_hears_why_it_is_refused(here: Any) -> None:
    reply = here.client.predict(b"[" + b" " * 10_000_000 + b"]")
    assert reply.status == 413 and "1000 bytes" in reply.json["error"]


def test_other_paths_and_methods_have_the_same_form(here: Any) -> None:
    assert here.client.get("/nothing").status == 404
    reply = here.client.get("/predict")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert reply.json["error_type"] == "Validation" and "GET" in reply.json["error"]


# --- keys, metrics, logs ----------------------------------------------------------------------


def test_keys_guard_the_model_and_not_the_probes(running: Any) -> None:
    with running(keys=(b"secret",)) as server:
        reply = server.client.predict({"text": "a"})
        assert (reply.status, reply.json["error_type"]) == (401, "Unauthorized")
        assert server.client.get("/info").status == 401
        assert server.client.predict({"text": "a"}, Authorization="Bearer wrong").status == 401
        assert server.client.predict({"text": "a"}, Authorization="Bearer secret").status == 200
        assert server.client.get("/info", Authorization="Bearer secret").status == 200
        for path in ("/", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json"):
            assert server.client.get(path).status == 200, path


def test_metrics_count_what_happened(here: Any) -> None:
    assert here.client.metric('moe_expert_requests_total{expert="mood-1"}') == 0
    here.client.predict([{"text": "one two"}, {"text": "a", "context": "b"}, {"text": "code"}])
    here.client.predict({})
    here.client.get("/no/such/path")
    for name, value in {
        'moe_http_requests_total{path="/predict",status="200"}': 1,
        'moe_http_requests_total{path="/predict",status="422"}': 1,
        'moe_http_requests_total{path="other",status="404"}': 1,
        "moe_request_seconds_count": 2,
        "moe_batch_tokens_sum": 4,
        "moe_queue_items": 0,
        "moe_queue_tokens": 0,
        'moe_expert_requests_total{expert="mood-0"}': 1,
        'moe_expert_requests_total{expert="qa-0"}': 1,
        'moe_answers_total{task="qa"}': 1,
        'moe_no_answer_total{task="qa"}': 1,
        "moe_abstained_total": 1,
    }.items():
        assert here.client.metric(name) == value, name
    assert "no/such" not in here.client.get("/metrics").body.decode()


def test_info_names_tasks_and_limits(here: Any) -> None:
    info = here.client.get("/info").json
    assert info["model"] == "text" and info["backend"] == "none"
    assert [task["name"] for task in info["tasks"]] == ["mood", "qa", "slots"]
    assert info["tasks"][0]["labels"] == ["bad", "good"]
    assert info["tasks"][1]["needs_context"]
    assert info["limits"]["items"] == 4


@pytest.mark.parametrize("log_texts", [False, True])
def test_a_line_for_each_request_with_texts_only_if_wanted(running: Any, log_texts: bool) -> None:
    stream, logger = io.StringIO(), logging.getLogger("moe.server")
    before = logger.handlers, logger.propagate, logger.level
    log_json(stream)
    try:
        with running(log_texts=log_texts) as server:
            server.client.predict({"text": "private"}, **{"X-Request-Id": "mine"})
            server.client.predict({"text": 7, "private": "b"})
            server.client.get("/livez")
    finally:
        logger.handlers, logger.propagate, logger.level = before
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    first, second = [line for line in lines if line["event"] == "request"]
    assert (first["id"], first["status"], first["items"], first["tokens"]) == ("mine", 200, 1, 1)
    assert first["tasks"] == ["mood"] and first["abstained"] == 0 and first["seconds"] >= 0
    assert (second["status"], second["error_type"]) == (422, "Validation")
    assert ("private" in json.dumps(first)) == log_texts
    assert "private" not in json.dumps(second)


# --- what is documented -----------------------------------------------------------------------


def test_the_schema_names_every_status(here: Any) -> None:
    schema = here.client.get("/openapi.json").json
    codes = set(schema["paths"]["/predict"]["post"]["responses"])
    assert {"200", "400", "401", "413", "415", "422", "429", "500", "503"} <= codes
    assert b"/openapi.json" in here.client.get("/docs").body


def test_the_schema_describes_every_form_of_answer(here: Any) -> None:
    replies = here.client.predict([{"text": "nice"}, {"text": "to Oslo"}, {"text": "who?"},
                                   {"text": "who?", "context": "by Ada"}]).json
    content = here.client.get("/openapi.json").json["paths"]["/predict"]["post"]["responses"]
    one, _ = content["200"]["content"]["application/json"]["schema"]["anyOf"]
    forms = one["properties"]["answers"]["additionalProperties"]["anyOf"]
    for answer in (answer for reply in replies for answer in reply["answers"].values()):
        fits = [form["title"] for form in forms
                if set(form["required"]) <= set(answer) <= set(form["properties"])]
        assert len(fits) == 1, (answer, fits)


def test_the_command_line_is_the_one_that_is_documented() -> None:
    parser = runpy.run_path(str(ROOT / "scripts" / "serve.py"))["parser"]()
    assert settings_of(vars(parser.parse_args(["--ckpt", "a"]))).limits == Limits()
    known = re.findall(r"--[a-z-]+", parser.format_help())
    named = re.findall(r"--[a-z][a-z-]+", (ROOT / "docs" / "serving.md").read_text())
    assert len(set(named)) > 10 and set(named) <= set(known)
    deployment, *_ = yaml.safe_load_all((ROOT / "deploy" / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    entry, = re.findall(r"ENTRYPOINT (\[.*\])", (ROOT / "Dockerfile").read_text())
    parser.parse_args([*json.loads(entry)[2:], *pod["containers"][0]["args"]])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert pod["containers"][0][probe]["httpGet"]["path"] in ("/livez", "/readyz")
