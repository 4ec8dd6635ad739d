"""`scripts/serve.py` as a process: a checkpoint, overload, signals, mistakes."""

from __future__ import annotations

import http.client
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from moe import MixtureOfExperts
from moe.checkpoint import Bundle, save_bundle

TURNS = [0, *(pytest.param(turn, marks=pytest.mark.slow) for turn in range(1, 20))]
REQUESTS: list[dict[str, Any]] = [
    {"id": "1", "text": "very good film", "tasks": ["sentiment"]},
    {"id": "2", "text": "who led the monks", "context": "an abbot led", "tasks": ["qa"]},
    {"id": "3", "text": "the film was bad", "tasks": ["sentiment", "intent"]},
    {"id": "4", "text": "who was good"},
]


@pytest.fixture
def model(word_bundle: Callable[..., Bundle], tmp_path: Path) -> Path:
    """A folder with an untrained mixture."""
    save_bundle(word_bundle(), tmp_path / "tiny")
    return tmp_path / "tiny"


def check_answers(client: Any, model: Path) -> None:
    """The server says what Python says."""
    assert client.get("/readyz").status == 200
    assert client.get("/info").json["model"] == "tiny"
    expected = MixtureOfExperts.from_pretrained(model, "cpu").predict(REQUESTS)
    for ours, theirs in zip(client.predict(REQUESTS).json, expected, strict=True):
        assert ours.keys() == theirs.keys() and ours["id"] == theirs["id"]
        assert ours["answers"].keys() == theirs["answers"].keys()
        for task, said in theirs["answers"].items():
            assert ours["answers"][task].get("label") == said.get("label")
            assert ours["answers"][task]["score"] == pytest.approx(said["score"], abs=1e-5)


def ask(client: Any) -> str:
    try:
        return str(client.predict(REQUESTS[3]).status)
    except ConnectionRefusedError:
        return "refused"
    except (ConnectionError, http.client.HTTPException):
        return "reset"  # of a connection that nobody had accepted


@pytest.mark.parametrize("turn", TURNS)
def test_overload_and_sigterm_lose_no_accepted_request(
    model: Path, process: Any, until: Any, turn: int
) -> None:
    """24 clients, room for four; then SIGTERM while they go on."""
    said: list[str] = []  # by all threads, so no counter
    stop = threading.Event()

    def keep_asking(client: Any) -> None:
        while not stop.is_set():
            said.append(ask(client))
            time.sleep(0.01)

    limits = ("--device", "cpu", "--max-queue", 4, "--max-items", 4)
    with process("--ckpt", model, *limits) as server, ThreadPoolExecutor(24) as clients:
        check_answers(server.client, model)
        for _ in range(24):
            clients.submit(keep_asking, server.client)
        try:
            until(lambda: said.count("200") >= 20 and said.count("429") >= 20, 60)
            server.popen.send_signal(signal.SIGTERM)
            code = server.end()
        finally:
            stop.set()
    seen = Counter(said)
    assert code == 0
    assert set(seen) <= {"200", "429", "503", "refused", "reset"}
    logged = Counter(str(line["status"]) for line in server.lines if line["event"] == "request")
    # Two more are those of `check_answers`; successful probes are not logged.
    assert logged["200"] == seen["200"] + 2 and logged["499"] == logged["500"] == 0
    assert server.lines[-1]["event"] == "stopped" and server.lines[-1]["unanswered"] == 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_an_export_is_served_without_torch(
    model: Path, process: Any, run: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("onnxscript", reason="the extra [export] is not installed")
    run("scripts/export.py", "--ckpt", model, "--out", tmp_path / "export" / "tiny")
    with process("--onnx", tmp_path / "export" / "tiny") as server:
        check_answers(server.client, model)
        assert server.client.get("/info").json["backend"] == "onnx"
        assert "libtorch" not in Path(f"/proc/{server.popen.pid}/maps").read_text()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "one of --ckpt PATH, --onnx DIR and --registry DIR, got []"),
        (["--ckpt", "no.ckpt"], "no.ckpt"),
        (["--onnx", "no-export"], "no-export"),
        (["--ckpt", "no.ckpt", "--max-batch-tokens", "0"], "got 0"),
        (["--ckpt", "no.ckpt", "--api-key-file", "no.keys"], "no.keys"),
        (["--ckpt", "no.ckpt", "--host", "300.1.1.1"], "300.1.1.1"),
    ],
)
def test_mistakes_of_the_command_line(
    run: Callable[..., Any], arguments: list[str], part: str
) -> None:
    done = run("scripts/serve.py", *arguments, "--port", 0, code=2)
    assert done.stderr.startswith("error: ") and part in done.stderr
