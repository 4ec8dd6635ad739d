"""What Prometheus reads at `/metrics`, in a registry of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)

from moe.server.batcher import Batch, Batcher
from moe.server.model import Served
from moe.types import TaskSpec

SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Paths are free text: a client must not be able to make a series for each.
_PATHS = (
    "/",
    "/predict",
    "/feedback",
    "/info",
    "/livez",
    "/readyz",
    "/metrics",
    "/docs",
    "/openapi.json",
)


class Metrics:
    """Counters of one model and its queue.

    Args:
        tasks: Of the model; their series and those of their experts begin at 0.
        backend: What computes.
        version: Of this project.
    """

    def __init__(self, tasks: Sequence[TaskSpec], backend: str, version: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        build = Info("moe_build", "version and backend", registry=self.registry)
        build.info({"version": version, "backend": backend})
        self._count_batches()
        self._count_answers(tasks)

    def _count_batches(self) -> None:
        registry = self.registry
        self.waited = Histogram(
            "moe_queue_seconds",
            "time of a request in the queue",
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "moe_batch_seconds",
            "time of a batch in the model",
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_tokens = Histogram(
            "moe_batch_tokens", "tokens of a batch", buckets=_TOKENS, registry=registry
        )
        self.batch_items = Histogram(
            "moe_batch_items", "requests of a batch", buckets=_ITEMS, registry=registry
        )
        self.failures = Counter(
            "moe_failures", "requests on which the model failed, also alone", registry=registry
        )

    def _count_answers(self, tasks: Sequence[TaskSpec]) -> None:
        registry = self.registry
        self.tasks = Counter("moe_answers", "answers by task", ["task"], registry=registry)
        self.experts = Counter(
            "moe_expert_requests",
            "requests that an expert answered",
            ["expert"],
            registry=registry,
        )
        self.abstained = Counter("moe_abstained", "requests that fit no task", registry=registry)
        self.out_of_scope = Counter(
            "moe_out_of_scope", "answers that fit no label", ["task"], registry=registry
        )
        self.no_answer = Counter(
            "moe_no_answer",
            "questions that the passage does not answer",
            ["task"],
            registry=registry,
        )
        self.telemetry_dropped = Counter(
            "moe_telemetry_dropped", "rows of telemetry that were lost", registry=registry
        )
        self.model = Info("moe_model", "the model of new requests", registry=registry)
        self.swaps = Counter(
            "moe_model_swaps", "versions that became current", ["result"], registry=registry
        )
        for result in ("served", "refused"):
            self.swaps.labels(result)
        self._begin(tasks)

    def _begin(self, tasks: Sequence[TaskSpec]) -> None:
        """Series of tasks and experts, from 0."""
        for task in tasks:
            self.tasks.labels(task.name)
            for name in task.expert_names:
                self.experts.labels(name)
            if task.needs_context:
                self.no_answer.labels(task.name)
            elif task.out_of_scope is not None:
                self.out_of_scope.labels(task.name)

    def serve(self, served: Served) -> None:
        """Says which model new requests get."""
        self.model.info({"name": served.name, "hash": served.hash or ""})
        self._begin(served.tasks)

    def watch(self, batcher: Batcher) -> None:
        """Reads the length of the queue whenever it is asked for."""
        items = Gauge("moe_queue_items", "requests that wait", registry=self.registry)
        items.set_function(lambda: batcher.items)
        tokens = Gauge("moe_queue_tokens", "tokens that wait", registry=self.registry)
        tokens.set_function(lambda: batcher.tokens)

    def batch(self, batch: Batch) -> None:
        """Counts a batch and what was answered."""
        self.batch_tokens.observe(batch.tokens)
        self.batch_items.observe(len(batch.jobs))
        self.batch_seconds.observe(batch.seconds)
        for job, outcome in zip(batch.jobs, batch.outcomes, strict=True):
            self.waited.observe(batch.started - job.arrived)
            if isinstance(outcome, Exception):
                self.failures.inc()
            else:
                self._answer(outcome)

    def _answer(self, answer: Mapping[str, Any]) -> None:
        if answer["abstained"]:
            self.abstained.inc()
            return  # its routing names experts whose answers were thrown away
        for entry in answer["routing"]:
            for expert in entry["experts"]:
                self.experts.labels(expert["name"]).inc()
        for task, said in answer["answers"].items():
            self.tasks.labels(task).inc()
            if said.get("out_of_scope"):
                self.out_of_scope.labels(task).inc()
            if said.get("no_answer"):
                self.no_answer.labels(task).inc()

    def text(self) -> bytes:
        """The page in Prometheus' text format."""
        return generate_latest(self.registry)


class HttpMetrics:
    """Counters of one HTTP server.

    Args:
        registry: That they are shown in.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "moe_http_requests", "HTTP requests", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "moe_request_seconds",
            "from the headers of a POST /predict to its answer, refused ones too",
            buckets=SECONDS,
            registry=registry,
        )
        self.gone = Counter(
            "moe_requests_discarded",
            "requests dropped from the queue because the client had gone",
            registry=registry,
        )

    def request(self, path: str, status: int, seconds: float) -> None:
        """Counts a finished HTTP request."""
        self.requests.labels(path if path in _PATHS else "other", str(status)).inc()
        if path == "/predict":
            self.seconds.observe(seconds)
