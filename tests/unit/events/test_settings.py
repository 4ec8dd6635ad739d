"""What the command line of the consumer may set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from moe.events.settings import EventSettings, settings_of, without_secret
from moe.server.settings import Settings
from moe.types import InputError

GOOD: dict[str, Any] = {"broker": "nats://host:4222", "model": Settings(checkpoint="a")}


@pytest.mark.parametrize(("broker", "kind"), [
    ("nats://host:4222", "nats"), ("tls://host", "nats"), ("kafka://one:1,two:2", "kafka"),
])
def test_the_broker_is_known_by_its_scheme(broker: str, kind: str) -> None:
    assert EventSettings(**{**GOOD, "broker": broker}).kind == kind


@pytest.mark.parametrize(("values", "part"), [
    ({"broker": "amqp://u:secret@host"}, r"one of nats://.*kafka://HOST:PORT, got 'amqp://\*\*\*@host'"),
    ({"broker": "nats:"}, "got 'nats:'"),
    ({"requests": "a b"}, "--requests must be at most 200 letters.*got 'a b'"),
    ({"dead": "a.*"}, "--dead must.*got 'a.*'"),
    ({"answers": "a..b"}, "--answers must"),
    ({"group": "a.b"}, "--group must not hold '.', got 'a.b'"),
    ({"requests": "x", "dead": "x"}, "--requests and --dead are both 'x'"),
    # The stream of the answers holds every topic below theirs.
    ({"dead": "moe.answers.dead"}, "--dead 'moe.answers.dead' lies among the answers"),
    ({"requests": "moe.answers"}, "--requests 'moe.answers' lies among the answers"),
    ({"attempts": 0}, "attempts must be at least 1, got 0"),
    ({"deliveries": 0}, "deliveries must be at least 1, got 0"),
    ({"ack_seconds": 0.5}, "ack_seconds must be at least 1, got 0.5"),
    ({"keep_seconds": 10.0}, "--keep-seconds 10 must be at least --duplicate-seconds 3600"),
    ({"metrics_port": 70_000}, "--metrics-port must be in .*got 70000"),
    ({"kafka_config": {"a": 1}}, "--kafka-config goes with kafka://, got 'nats://host:4222'"),
])
def test_settings_check_themselves(values: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError, match=part):
        EventSettings(**{**GOOD, **values})


def test_a_topic_beside_the_answers_is_not_among_them() -> None:
    assert EventSettings(**GOOD, dead="moe.answers-dead").dead == "moe.answers-dead"


def test_no_password_is_shown() -> None:
    assert without_secret("nats://me:secret@host:1") == "nats://***@host:1"
    assert without_secret("kafka://one:1,two:2") == "kafka://one:1,two:2"
    settings = EventSettings(broker="kafka://h:1", model=Settings(checkpoint="a"),
                             kafka_config={"sasl.password": "secret"})
    assert "secret" not in repr(settings)


def test_the_command_line_becomes_settings(tmp_path: Path) -> None:
    file = tmp_path / "kafka.json"
    file.write_text('{"sasl.username": "me"}')
    settings = settings_of({
        "broker": "kafka://h:1", "onnx": "dir", "threads": 2, "body": 1000, "batch_tokens": 64,
        "in_flight": 7, "per_task": True, "kafka_config": str(file), "grace_seconds": 3.0,
    })
    assert (settings.in_flight, settings.per_task) == (7, True)
    assert settings.kafka_config == {"sasl.username": "me"}
    assert (settings.model.onnx, settings.model.threads) == ("dir", 2)
    limits = settings.model.limits
    assert (limits.body, limits.batch_tokens, limits.grace_seconds) == (1000, 64, 3.0)
    # Whatever is taken has room in the queue: nothing is refused that a broker gave.
    assert (limits.queue_items, limits.queue_tokens) == (7, sys.maxsize)


@pytest.mark.parametrize(("content", "part"), [
    (None, "cannot be read"), ("{", "no JSON"), ("[1]", r"expected an object, got \[1\]"),
])
def test_a_bad_kafka_file_is_named(tmp_path: Path, content: str | None, part: str) -> None:
    file = tmp_path / "kafka.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=f"{file}: {part}"):
        settings_of({"broker": "kafka://h:1", "onnx": "d", "kafka_config": str(file)})
