"""Consumers killed at random, a broker restarted, messages that cannot be answered among others."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe.chaos.process import fork, kill_group, program, wait
from moe.chaos.report import Report

CONSUME = Path(__file__).parents[2] / "scripts" / "consume.py"
REQUESTS, ANSWERS, DEAD = "moe.requests", "moe.answers", "moe.dead"
CONSUMERS = 2
PATIENCE = 300.0  # seconds without progress after which messages count as lost

# What cannot be answered, and what its dead letter must say.
POISON: tuple[tuple[bytes, str], ...] = (
    (b"{no json", "the body is no JSON"),
    (b"\xff\xfe\xfd", "not UTF-8"),
    (b"", "the body is empty"),
    (b'{"text": ""}', "text is empty"),
    (b'{"text": "x", "tasks": ["nothing"]}', "no task 'nothing'"),
    (b'{"text": "x", "more": 1}', "unknown field 'more'"),
    (b'["one", "two"]', "got a list of 2"),
    (b'{"text": "a\\u0000b"}', "a NUL at character 1"),
    (b"[" * 100_000, "nested too deeply"),
    (b'"' + b"a" * 30_000 + b'"', "30000 characters"),
)


@dataclass
class Storm:
    """Consumers of one broker, and what is done to them.

    Attributes:
        broker: URL.
        model: An export.
        folder: Of logs.
        restart: Stops and starts the broker; None for one that would forget.
        chance: Of kills.
        running: The log of each consumer, by process id.
        started: How many there have been.
    """

    broker: str
    model: Path
    folder: Path
    restart: Callable[[], None] | None
    chance: random.Random
    running: dict[int, Path] = field(default_factory=dict)
    started: int = 0

    def start(self) -> None:
        """Starts a consumer with small batches, so that many are under way."""
        options = ["--onnx", self.model, "--threads", 1, "--broker", self.broker]
        options += ["--in-flight", 16, "--max-batch-tokens", 128, "--ack-seconds", 5]
        self.started += 1
        log = self.folder / f"consumer-{self.started}.log"
        self.running[fork(program(CONSUME, *options), log)] = log

    def begun(self) -> list[int]:
        """Consumers that have said so."""
        return [p for p, log in self.running.items() if _says(log, b'"consuming"')]

    def kill(self) -> None:
        """SIGKILL for one of them that has begun, and another in its place."""
        victim = self.chance.choice(self.begun())
        del self.running[victim]
        kill_group(victim)
        wait(victim)
        self.start()

    def end(self) -> list[int]:
        """SIGTERM for all, once they have begun; their exit codes."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and len(self.begun()) < len(self.running):
            time.sleep(0.2)
        for process in self.running:
            os.kill(process, signal.SIGTERM)
        return [wait(process, 60) for process in self.running]


def _says(log: Path, words: bytes) -> bool:
    return log.is_file() and words in log.read_bytes()


def rows(messages: int, poison: int) -> list[tuple[str, bytes]]:
    """Requests with keys, what cannot be answered spread among them."""
    step = messages // poison if poison else messages + 1
    mixed: list[tuple[str, bytes]] = []
    for number in range(messages):
        request = {"id": f"r{number}", "text": f"what time is it in place {number}"}
        mixed.append((f"r{number}", json.dumps(request).encode()))
        if number % step == step - 1 and number // step < poison:
            mixed.append((f"p{number}", POISON[number // step % len(POISON)][0]))
    return mixed


def blow(storm: Storm, mixed: list[tuple[str, bytes]], kills: int, restarts: int) -> None:
    """Sends the messages in as many parts as there are kills, each in the middle of its part."""
    from moe.events.client import count, send

    for _ in range(CONSUMERS):
        storm.start()
    size = -(-len(mixed) // kills)
    for number in range(kills):
        before = count(storm.broker, ANSWERS)
        send(storm.broker, REQUESTS, mixed[number * size : (number + 1) * size])
        if storm.restart and number * restarts // kills != (number + 1) * restarts // kills:
            storm.restart()
        until = time.monotonic() + PATIENCE
        while count(storm.broker, ANSWERS) <= before and time.monotonic() < until:
            time.sleep(0.2)
        time.sleep(storm.chance.uniform(0.0, 0.2))
        storm.kill()


def settle(storm: Storm, answers: int, dead: int) -> None:
    """Waits until so many different ones are there, or nothing has come for `PATIENCE` seconds."""
    from moe.events.client import count

    seen, since = (-1, -1), time.monotonic()
    while time.monotonic() - since < PATIENCE:
        now = count(storm.broker, ANSWERS), count(storm.broker, DEAD)
        if now[0] >= answers and now[1] >= dead and _different(storm) >= (answers, dead):
            return
        if now != seen:
            seen, since = now, time.monotonic()
        time.sleep(1.0)


def _different(storm: Storm) -> tuple[int, int]:
    """How many requests are answered, and how many messages are dead."""
    from moe.events.client import read

    answered = {json.loads(message["body"])["id"] for message in read(storm.broker, ANSWERS)}
    dead = {json.loads(message["body"])["place"] for message in read(storm.broker, DEAD)}
    return len(answered), len(dead)


def judge(
    report: Report, name: str, mixed: list[tuple[str, bytes]], answers: list[Any], dead: list[Any]
) -> None:
    """Compares what came out with what went in.

    Args:
        report: Gets the cases.
        name: Of the broker.
        mixed: What was sent.
        answers, dead: What the topics hold, as `moe.events.client.read`.
    """
    asked = {key for key, _ in mixed if key.startswith("r")}
    said: dict[str, set[str]] = {}
    for message in answers:
        # In another batch a row is rounded in another way: all but its numbers must be the same.
        answer = json.loads(message["body"], parse_float=lambda number: 0.0)
        said.setdefault(answer["id"], set()).add(json.dumps(answer))
    lost, strange = sorted(asked - said.keys()), sorted(said.keys() - asked)
    many = [key for key, bodies in said.items() if len(bodies) > 1]
    problems = [f"{len(lost)} lost, such as {lost[:3]}"] * bool(lost)
    problems += [f"{len(strange)} answers to nothing, such as {strange[:3]}"] * bool(strange)
    problems += [f"{len(many)} with several answers, such as {many[:3]}"] * bool(many)
    report.case(f"{name}: answers", problems)
    report.case(f"{name}: dead letters", unexplained(mixed, dead))
    report.numbers |= {
        f"{name}_answers": len(answers),
        f"{name}_distinct": len(said),
        f"{name}_dead": len({json.loads(m["body"])["place"] for m in dead}),
    }


def unexplained(mixed: list[tuple[str, bytes]], dead: list[Any]) -> list[str]:
    """Dead letters that are missing, too many, or without the right reason."""
    letters = {(found := json.loads(m["body"]))["place"]: found["reason"] for m in dead}
    expected = Counter(dict(POISON)[body] for key, body in mixed if key.startswith("p"))
    problems = []
    for part, number in expected.items():
        found = sum(part in reason for reason in letters.values())
        if found != number:
            problems.append(f"{number} messages should die of {part!r}, {found} did")
    if len(letters) != expected.total():
        problems.append(f"{len(letters)} dead letters, expected {expected.total()}")
    return problems


def random_export(folder: Path) -> Path:
    """A tiny model with random weights as an export; one that is there is taken."""
    from moe.benchmarks.models import built_bundle
    from moe.onnx.export import write

    if not (folder / "model.onnx").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write(built_bundle("tiny", trunk="transformer"), folder, int8=False, checked=False)
    return folder


def _weather(report: Report, name: str, storm: Storm, restarts: int) -> None:
    from moe.events.client import read

    numbers = report.numbers
    mixed = rows(numbers["messages"], poison=max(1, numbers["messages"] // 100))
    try:
        blow(storm, mixed, numbers["kills"], restarts)
        settle(storm, numbers["messages"], len(mixed) - numbers["messages"])
    finally:
        codes = storm.end()
    wrong = [f"exit codes {codes} after SIGTERM"] * any(codes)
    report.case(f"{name}: graceful stop", wrong)
    judge(report, name, mixed, read(storm.broker, ANSWERS), read(storm.broker, DEAD))


def on_nats(report: Report, scratch: Path, restarts: int, seed: int) -> None:
    """Two consumers of NATS JetStream, which is killed and started again `restarts` times."""
    from moe.events.embedded import nats_server

    model = random_export(scratch / "model")
    with nats_server(scratch / "nats") as server:

        def restart() -> None:
            server.kill()
            server.start()

        logs = _folder(scratch / "logs-nats")
        storm = Storm(server.url, model, logs, restart, random.Random(seed))
        _weather(report, "nats", storm, restarts)
    stored, distinct = report.numbers["nats_answers"], report.numbers["nats_distinct"]
    twice = [f"{stored} answers stored to {distinct} requests"] * (stored != distinct)
    report.case("nats: no answer twice", twice)


def on_kafka(report: Report, scratch: Path, seed: int) -> None:
    """Two consumers of librdkafka's mock, which lives in this process and is not restarted."""
    from moe.events.embedded import mock_kafka

    model = random_export(scratch / "model")
    with mock_kafka() as url:
        storm = Storm(url, model, _folder(scratch / "logs-kafka"), None, random.Random(seed))
        _weather(report, "kafka", storm, 0)


def events(
    scratch: Path,
    messages: int = 2000,
    kills: int = 20,
    restarts: int = 5,
    seed: int = 0,
    brokers: Sequence[str] = ("nats", "kafka"),
) -> Report:
    """Kills consumers of each broker while messages come, one in a hundred of them poison."""
    # Imported once, not in every child.
    import moe.events.kafka
    import moe.events.nats
    import moe.events.run
    import moe.onnx.predictor  # noqa: F401

    report = Report(name="events")
    report.numbers |= {"messages": messages, "kills": kills, "restarts": restarts}
    if "nats" in brokers:
        on_nats(report, scratch, restarts, seed)
    if "kafka" in brokers:
        on_kafka(report, scratch, seed)
    return report


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
