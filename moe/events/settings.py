"""What the command line of the consumer sets, checked once."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from moe.server.settings import Limits, Settings
from moe.types import InputError

Kind = Literal["nats", "kafka"]
SCHEMES: dict[str, Kind] = {"nats": "nats", "tls": "nats", "kafka": "kafka"}
# What NATS and Kafka both take; neither wildcards nor white space.
_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_LONGEST_NAME = 200


@dataclass(frozen=True, kw_only=True)
class EventSettings:
    """How to consume.

    Attributes:
        broker: `nats://HOST:PORT` (with JetStream; `tls://` encrypts) or `kafka://HOST:PORT,...`.
        model: The model, its queue and telemetry; its fields of HTTP are not used.
        requests: Topic of the requests.
        answers: Topic of the answers.
        dead: Topic of the messages that cannot be answered, with the reason.
        per_task: Whether the answer of a task goes to the topic `ANSWERS.TASK`.
        group: Name that consumers have in common which share the requests.
        in_flight: Most messages that are taken and not yet answered.
        attempts: Times that the model is asked before a message is given up.
        deliveries: Times that a message may be taken; above it is given up unread. NATS alone.
        ack_seconds: Time after which NATS gives the messages of a dead consumer to another.
        duplicate_seconds: Time in which NATS drops a second answer to a request; of streams that
            are made at the start.
        keep_seconds: Time that NATS keeps answers; of streams that are made at the start.
        metrics_host, metrics_port: Where `/metrics` listens; port 0 takes a free one.
        kafka_config: Further settings of librdkafka, such as `sasl.username`.
    """

    broker: str
    model: Settings
    requests: str = "moe.requests"
    answers: str = "moe.answers"
    dead: str = "moe.dead"
    per_task: bool = False
    group: str = "moe"
    in_flight: int = 128
    attempts: int = 3
    deliveries: int = 10
    ack_seconds: float = 30.0
    duplicate_seconds: float = 3600.0
    keep_seconds: float = 7 * 86_400.0
    metrics_host: str = "127.0.0.1"
    metrics_port: int = 0
    kafka_config: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def kind(self) -> Kind:
        """Of the broker."""
        return SCHEMES[urlsplit(self.broker).scheme]

    def __post_init__(self) -> None:
        if urlsplit(self.broker).scheme not in SCHEMES or not urlsplit(self.broker).netloc:
            raise InputError(
                f"consume: --broker must be one of {', '.join(s + '://HOST:PORT' for s in SCHEMES)}"
                f", got {without_secret(self.broker)!r}"
            )
        self._check_names()
        for name in ("in_flight", "attempts", "deliveries", "ack_seconds", "duplicate_seconds"):
            if getattr(self, name) < 1:
                raise InputError(f"consume: {name} must be at least 1, got {getattr(self, name)}")
        if self.keep_seconds < self.duplicate_seconds:
            raise InputError(
                f"consume: --keep-seconds {self.keep_seconds:g} must be at least "
                f"--duplicate-seconds {self.duplicate_seconds:g}: only kept answers are compared"
            )
        if not 0 <= self.metrics_port < 65_536:
            raise InputError(
                f"consume: --metrics-port must be in [0, 65535], got {self.metrics_port}"
            )
        if self.kafka_config and self.kind != "kafka":
            raise InputError(
                f"consume: --kafka-config goes with kafka://, got {without_secret(self.broker)!r}"
            )

    def _check_names(self) -> None:
        names = {n: getattr(self, n) for n in ("requests", "answers", "dead", "group")}
        for name, value in names.items():
            if not _NAME.fullmatch(value) or len(value) > _LONGEST_NAME:
                raise InputError(
                    f"consume: --{name} must be at most {_LONGEST_NAME} letters, digits, '-', '_' "
                    f"and '.' between them, got {value!r:.250}"
                )
        if "." in self.group:
            raise InputError(f"consume: --group must not hold '.', got {self.group!r}")
        for name in ("requests", "dead"):
            if f"{names[name]}.".startswith(f"{self.answers}."):
                raise InputError(
                    f"consume: --{name} {names[name]!r} lies among the answers, {self.answers!r}: "
                    "choose another name"
                )
        if self.requests == self.dead:
            raise InputError(f"consume: --requests and --dead are both {self.dead!r}")


def without_secret(url: str) -> str:
    """A URL without the password in it."""
    return re.sub(r"//[^/]*@", "//***@", url)


def read_kafka_config(path: str | None) -> dict[str, Any]:
    """The JSON object of a file.

    Raises:
        InputError: It cannot be read, or it is no object.
    """
    if path is None:
        return {}
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--kafka-config {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"--kafka-config {path}: no JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"--kafka-config {path}: expected an object, got {value!r:.60}")
    return value


def settings_of(values: dict[str, Any]) -> EventSettings:
    """The settings that the values of the command line, by destination, describe."""
    names = {f.name for f in fields(EventSettings)} - {"model", "kafka_config"}
    own = {name: values.pop(name) for name in names & values.keys()}
    kafka = read_kafka_config(values.pop("kafka_config", None))
    bounds = {f.name for f in fields(Limits)}
    limits = {name: values.pop(name) for name in bounds & values.keys()}
    # The messages in flight are the bound: each is at most `body` bytes.
    queue = {"items": 1, "queue_items": max(1, own.get("in_flight", EventSettings.in_flight))}
    limits |= queue | {"queue_tokens": sys.maxsize}
    model = Settings(**values, limits=Limits(**limits))
    return EventSettings(**own, model=model, kafka_config=kafka)
