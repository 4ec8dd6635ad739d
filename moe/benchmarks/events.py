"""Benchmark `events`: requests through a broker and one consumer, against the predictor alone."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count as numbers
from pathlib import Path
from typing import Any

from moe.benchmarks.latency import shape_of
from moe.benchmarks.models import bundle_of
from moe.benchmarks.offline import mixed_texts
from moe.benchmarks.pairs import Benchmark, Case, Options
from moe.benchmarks.processes import own_script
from moe.checkpoint import save_bundle
from moe.requests import Request

TEXTS = 256
BATCH_TOKENS = 1024
_START_SECONDS = 300.0
_ROUND_SECONDS = 1800.0


def budgeted(tokens: Sequence[int], budget: int) -> Iterator[slice]:
    """Batches in order of arrival, as `moe.server.batcher` takes them from a full queue.

    Args:
        tokens: Of each request.
        budget: Most tokens of a batch; a larger request is alone.
    """
    first, room = 0, budget
    for number, cost in enumerate(tokens):
        if number > first and cost > room:
            yield slice(first, number)
            first, room = number, budget
        room -= cost
    yield slice(first, len(tokens))


def answer_all(model: Any, batches: Sequence[Sequence[Request]]) -> float:
    """Seconds in which a predictor answers batches, one after another."""
    start = time.perf_counter()
    for batch in batches:
        model.answer(batch)
    return time.perf_counter() - start


def consume_all(broker: str, texts: Sequence[str], rounds: Iterator[int]) -> float:
    """Seconds from the first request sent to the last answer stored."""
    from moe.events.client import count, send

    number = next(rounds)
    before = count(broker, "moe.answers")
    asked = [
        (f"{number}-{row}", json.dumps({"id": f"{number}-{row}", "text": text}).encode())
        for row, text in enumerate(texts)
    ]
    start = time.perf_counter()
    send(broker, "moe.requests", asked)
    while count(broker, "moe.answers") < before + len(texts):
        time.sleep(0.05)
        if time.perf_counter() - start > _ROUND_SECONDS:
            raise RuntimeError(f"no answers to {len(texts)} requests in {_ROUND_SECONDS:g} s")
    return time.perf_counter() - start


@contextmanager
def consumer(command: list[str], log: Path) -> Iterator[None]:
    """A consumer that has begun.

    Raises:
        RuntimeError: It did not begin.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        until = time.monotonic() + _START_SECONDS
        while b'"consuming"' not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the consumer did not begin: {log.read_text()[-500:]}")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(60)


def events(options: Options) -> Iterator[Case]:
    """NATS, the consumer and this process on one machine; both sides torch, the same batches."""
    from moe import MixtureOfExperts
    from moe.events.embedded import nats_server

    texts = mixed_texts(24 if options.quick else TEXTS)
    with tempfile.TemporaryDirectory() as name, nats_server(Path(name, "nats")) as server:
        save_bundle(bundle_of(options.checkpoint, shape_of(options)), Path(name, "model"))
        model: Any = MixtureOfExperts.from_pretrained(str(Path(name, "model")))
        requests = [Request(text=text) for text in texts]
        parts = budgeted(model.count_tokens(requests), BATCH_TOKENS)
        batches = [requests[part] for part in parts]
        command = [sys.executable, own_script(options, "consume.py"), "--broker", server.url]
        command += ["--ckpt", str(Path(name, "model")), "--threads", str(options.threads)]
        command += ["--max-batch-tokens", str(BATCH_TOKENS)]
        with consumer(command, Path(name, "log")):
            yield Case(
                name="nats",
                ours=partial(consume_all, server.url, texts, numbers()),
                baseline=partial(answer_all, model, batches),
                facts={"texts": len(texts), "batches": len(batches)},
            )


EVENTS = Benchmark(
    about=f"{TEXTS} texts of mixed length sent to a NATS server, answered by one consumer "
    "(scripts/consume.py) and stored, against the predictor alone on the same batches of at most "
    f"{BATCH_TOKENS} tokens; broker and sender on the same machine",
    cases=events,
    unit="s",
    ratio="baseline / ours",
    better="1 is the throughput of the predictor alone",
)
