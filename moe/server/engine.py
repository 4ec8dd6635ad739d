"""A model with its queue, metrics and telemetry: what answers, whatever brings the requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from importlib import metadata

from moe.monitor.rows import Row, row_of
from moe.monitor.telemetry import TelemetryWriter
from moe.requests import Request
from moe.server.batcher import Answer, Batch, Batcher, Job
from moe.server.metrics import Metrics
from moe.server.model import Served
from moe.server.settings import Settings

MODEL_HASH = "x-model-hash"  # header of an answer: SHA-256 of the files of the model that gave it
_LONG = 10_000  # characters above which tokens are counted beside the loop, not on it

log = logging.getLogger("moe.server")


def own_version() -> str:
    """Of the installed project, `0` from a checkout that is not installed."""
    try:
        return metadata.version("moe-nlp")
    except metadata.PackageNotFoundError:
        return "0"


class Engine:
    """Answers requests in batches; its model can be replaced meanwhile.

    Args:
        served: The model.
        settings: Limits of the queue, telemetry.
        version: Of this project, for the metrics.

    Attributes:
        settings: As given.
        metrics: Of batches and answers.
        batcher: The queue.
        telemetry: None where none is written.
    """

    def __init__(self, served: Served, settings: Settings, version: str) -> None:
        self._served = served
        self.settings = settings
        self.metrics = Metrics(served.tasks, served.backend, version)
        self.batcher = Batcher(
            served.answer,
            batch_tokens=settings.limits.batch_tokens,
            queue_items=settings.limits.queue_items,
            queue_tokens=settings.limits.queue_tokens,
            observe=self._observe,
        )
        self.telemetry: TelemetryWriter | None = None
        if settings.telemetry is not None:
            self.telemetry = TelemetryWriter(
                settings.telemetry,
                max_bytes=settings.telemetry_bytes,
                dropped=self.metrics.telemetry_dropped.inc,
            )
        self.metrics.watch(self.batcher)
        self.metrics.serve(served)

    @property
    def served(self) -> Served:
        """The model that new requests get."""
        return self._served

    def start(self) -> None:
        """Starts the worker, on the running loop."""
        if self.telemetry is not None:
            self.telemetry.start()
        self.batcher.start()

    def close(self) -> None:
        """Lets the worker end, and writes the telemetry that waits."""
        self.batcher.close()
        if self.telemetry is not None:
            self.telemetry.close()

    def replace(self, served: Served) -> None:
        """Gives new requests another model; those that were accepted keep theirs."""
        self._served = served
        self.metrics.serve(served)
        fields = {"model": served.name, "backend": served.backend, "hash": served.hash}
        log.info("swapped", extra={"fields": fields})

    async def count(self, requests: Sequence[Request], served: Served) -> list[int]:
        """What each request costs, in tokens."""
        count = served.count_tokens
        size = sum(len(request.text) + len(request.context or "") for request in requests)
        return await asyncio.to_thread(count, requests) if size > _LONG else count(requests)

    def submit(
        self, requests: Sequence[Request], tokens: Sequence[int], served: Served
    ) -> list[asyncio.Future[Answer]]:
        """The answers to come.

        Raises:
            QueueFull: These requests do not fit beside what waits.
        """
        return self.batcher.submit(requests, tokens, served.answer, served.hash or "")

    def _observe(self, batch: Batch) -> None:
        self.metrics.batch(batch)
        if self.telemetry is not None:
            for job, outcome in zip(batch.jobs, batch.outcomes, strict=True):
                if not isinstance(outcome, Exception):
                    self.telemetry.record(_row(job, outcome, batch))


def _row(job: Job, answer: Answer, batch: Batch) -> Row:
    request = job.request
    return row_of(
        answer,
        named=request.tasks is not None,
        tokens=job.tokens,
        characters=len(request.text) + len(request.context or ""),
        latency=1e3 * (batch.started + batch.seconds - job.arrived),
        model=job.model,
    )
