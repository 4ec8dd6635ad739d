"""Commands and a server as a user has them, with their output on this terminal."""

from __future__ import annotations

import http.client
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe.ports import free_port

_SHOWN = "python"  # what the commands are shown to start with
_PATIENCE = 600.0  # seconds: on a busy machine everything comes late


class StepFailed(RuntimeError):
    """A step did not do what it should: the entry point prints it and exits with code 1."""


def expect(holds: bool, what: str) -> None:
    """Raises StepFailed unless it holds."""
    if not holds:
        raise StepFailed(what)


def shown(arguments: Sequence[object]) -> str:
    """A command as a user types it."""
    return shlex.join([_SHOWN, *map(str, arguments)])


def run(*arguments: object, code: int = 0) -> str:
    """Runs a program of the repository, prints command and output; returns what it printed.

    Raises:
        StepFailed: It ended with another exit code.
    """
    print(f"\n$ {shown(arguments)}", flush=True)
    lines = []
    with subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    expect(
        process.returncode == code,
        f"{shown(arguments)}: exit code {process.returncode}, expected {code}",
    )
    return "".join(lines)


def wait_for(what: str, ready: Callable[[], bool], seconds: float = _PATIENCE) -> float:
    """Waits until it is so; returns the seconds.

    Raises:
        StepFailed: It was not in that time.
    """
    start = time.monotonic()
    while not ready():
        expect(time.monotonic() - start < seconds, f"{what}: not within {seconds:.0f} s")
        time.sleep(0.2)
    return time.monotonic() - start


class Server:
    """A running `scripts/serve.py`.

    Args:
        process: Of the server.
        port: On 127.0.0.1.
    """

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process, self._port = process, port

    def post(self, path: str, body: Any, key: str) -> tuple[int, Any, str]:
        """Status, answer and hash of the model that gave it."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        try:
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            content = json.loads(response.read())
        finally:
            connection.close()
        return response.status, content, response.getheader("x-model-hash") or ""

    def predict(self, requests: Sequence[dict[str, Any]], key: str, size: int = 20) -> list[Any]:
        """Answers in order, so many requests in a body.

        Raises:
            StepFailed: One was not answered.
        """
        answers: list[Any] = []
        for at in range(0, len(requests), size):
            status, content, _ = self.post("/predict", list(requests[at : at + size]), key)
            expect(status == 200, f"/predict: status {status}, {content}")
            answers += content
        return answers

    def is_ready(self) -> bool:
        """Whether it answers.

        Raises:
            StepFailed: It has ended.
        """
        code = self._process.poll()
        expect(code is None, f"the server ended with exit code {code}")
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


@contextmanager
def serving(log: Path, *arguments: object) -> Iterator[Server]:
    """A server that is ready, and that drains and ends well afterwards.

    Args:
        log: File of its log lines.
        arguments: Of `scripts/serve.py`, without `--port`.

    Raises:
        StepFailed: It is not ready in time, or ends with another exit code than 0.
    """
    port = free_port()
    command = ("scripts/serve.py", *arguments, "--port", port)
    print(f"\n$ {shown(command)} > {log} &", flush=True)
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)], stdout=file, stderr=subprocess.STDOUT, text=True
        )
    server = Server(process, port)
    try:
        took = wait_for("the server", server.is_ready)
        print(f"ready after {took:.0f} s", flush=True)
        yield server
        process.send_signal(signal.SIGTERM)
        code = process.wait(_PATIENCE)
        expect(code == 0, f"the server ended with exit code {code} after SIGTERM; see {log}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
