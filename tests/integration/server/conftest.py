"""Servers over real sockets: with a model made of text in this process, and as a process."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from moe.requests import Request
from moe.server.app import build_app
from moe.server.model import Served, load
from moe.server.run import DrainingServer, listen
from moe.server.service import Service
from moe.server.settings import Limits, Settings
from moe.types import TaskSpec

ROOT = Path(__file__).parents[3]
TASKS = (
    TaskSpec(name="mood", type="classifier", num_experts=2, labels=("bad", "good")),
    TaskSpec(name="qa", type="span", num_experts=1),
    TaskSpec(name="slots", type="tagger", num_experts=1, labels=("O", "B-city", "I-city")),
)


def said(request: Request) -> dict[str, Any]:
    """Which task follows from the request; `code` fits none, `boom` breaks."""
    if request.text == "boom":
        raise RuntimeError("boom on the way")
    task = "qa" if request.context else "slots" if "Oslo" in request.text else "mood"
    found: dict[str, Any] = {"label": "good", "score": 0.9, "scores": {"bad": 0.1, "good": 0.9}}
    if task == "qa":
        start = (request.context or "").find("Ada")
        found = {"text": "Ada", "start": start, "end": start + 3, "score": 0.7, "no_answer": False}
        if start < 0:
            found = {"text": "", "start": None, "end": None, "score": 0.5, "no_answer": True}
    if task == "slots":
        start = request.original.find("Oslo")
        span = {"label": "city", "start": start, "end": start + 4, "text": "Oslo", "score": 0.6}
        found = {"spans": [span]}
    routing = [{"task": task, "probability": 0.8, "experts": [{"name": f"{task}-0", "weight": 1}]}]
    fits = request.text != "code"
    return {
        **({"id": request.id} if request.id else {}),
        "abstained": not fits,
        "routing": routing,
        "answers": {task: found} if fits else {},
        **({} if fits else {"reason": "fits no task"}),
    }


@dataclass
class TextModel:
    """Answers when `free` is set, after so many seconds for each request; notes its batches."""

    free: threading.Event = field(default_factory=threading.Event)
    batches: list[list[str]] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.free.set()

    def answer(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        self.batches.append([request.text for request in requests])
        assert self.free.wait(20)
        time.sleep(self.seconds * len(requests))
        return [said(request) for request in requests]


@dataclass(frozen=True)
class Reply:
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Asks a server; every request has a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            return Reply(reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, **headers)

    def predict(self, value: Any, **headers: str) -> Reply:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.ask("POST", "/predict", body, **{"Content-Type": "application/json", **headers})

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics").body.decode(), re.M)
        assert found, f"no {name}"
        return float(found[1])


@dataclass(frozen=True)
class Running:
    """A server in this process."""

    client: Client
    model: TextModel
    server: DrainingServer

    @property
    def service(self) -> Service:
        return self.server.service


@contextmanager
def start(
    keys: tuple[bytes, ...] = (), log_texts: bool = False, settings: Settings | None = None,
    loaded: bool = False, **limits: Any,
) -> Iterator[Running]:
    """A server of `TextModel`, whose tokens are words; `loaded` takes the settings' own model."""
    settings = settings or Settings(
        checkpoint="none", api_keys=keys, log_texts=log_texts, limits=Limits(**limits)
    )
    model = TextModel()
    served = load(settings) if loaded else Served(
        name="text", backend="none", tasks=TASKS, answer=model.answer,
        count_tokens=lambda requests: [len(request.text.split()) for request in requests],
    )
    service = Service(served, settings, "1")
    config = uvicorn.Config(build_app(service), log_config=None, access_log=False, ws="none")
    server, bound = DrainingServer(config, service), listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    port = bound.getsockname()[1]
    thread.start()
    try:
        wait(lambda: server.started)
        yield Running(Client(port), model, server)
    finally:
        model.free.set()
        server.should_exit = True
        thread.join(20)


def wait(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Waits for something that another thread brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@dataclass
class Process:
    """`scripts/serve.py`, and the lines of its log so far."""

    popen: subprocess.Popen[str]
    lines: list[dict[str, Any]]
    reader: threading.Thread

    @property
    def client(self) -> Client:
        return Client(self.lines[0]["port"])

    def end(self) -> int:
        """Waits for the exit code and the last line."""
        code = self.popen.wait(60)
        self.reader.join(10)
        return code


@contextmanager
def start_process(*arguments: object) -> Iterator[Process]:
    """The server on a free port, from the moment it listens."""
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), *map(str, arguments)]
    popen = subprocess.Popen(
        [*command, "--port", "0", "--threads", "1"], stdout=subprocess.PIPE, text=True
    )
    lines: list[dict[str, Any]] = []

    def read() -> None:
        assert popen.stdout is not None
        for line in popen.stdout:
            lines.append(json.loads(line))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        wait(lambda: lines != [] or popen.poll() is not None, 120)
        assert lines and lines[0]["event"] == "listening", "it did not start"
        yield Process(popen, lines, reader)
    finally:
        popen.kill()
        popen.wait()
        reader.join(10)


# --- for the tests ----------------------------------------------------------------------------


@pytest.fixture
def here() -> Iterator[Running]:
    """A server with small limits."""
    with start(items=4, characters=50, body=1000, queue_items=4, queue_tokens=20) as server:
        yield server


@pytest.fixture(scope="session")
def answer() -> Callable[..., dict[str, Any]]:
    """What `TextModel` says to a request, given by its fields."""
    return lambda **fields: said(Request(**fields))


@pytest.fixture(scope="session")
def running() -> Callable[..., Any]:
    """`with running(keys=..., log_texts=..., LIMIT=...) as server`, of this process."""
    return start


@pytest.fixture(scope="session")
def process() -> Callable[..., Any]:
    """`with process(ARGUMENT, ...) as server`, of a new process."""
    return start_process


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    """`until(condition)` waits for something that another thread brings about."""
    return wait
