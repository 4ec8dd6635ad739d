"""A bounded queue in front of one worker thread that answers batches of a token budget.

The worker takes what is there, in order of arrival, and never waits for more: under light load a
request runs at once and alone, under heavy load batches fill by themselves while one runs.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from moe.requests import Request

Answer = dict[str, Any]
Answering = Callable[[Sequence[Request]], Sequence[Answer]]

log = logging.getLogger("moe.server")


class QueueFull(Exception):
    """There is no room for these requests.

    Attributes:
        retry_after: Whole seconds in which what waits should be answered, at least 1.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"retry after {retry_after} s")
        self.retry_after = retry_after


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Job:
    """One accepted request.

    Attributes:
        request: Checked.
        tokens: What it costs, in tokens.
        answer: What answers it; a batch has one.
        model: Hash of the model that it belongs to.
        arrived: `time.perf_counter()` when it was accepted.
        future: Of its answer, on the server's loop.
    """

    request: Request
    tokens: int
    answer: Answering
    model: str
    arrived: float
    future: asyncio.Future[Answer]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch that was answered.

    Attributes:
        jobs: Of one run of the worker.
        outcomes: For each its answer, or what was raised.
        started: `time.perf_counter()` when it left the queue.
        seconds: Until all outcomes were there.
    """

    jobs: list[Job]
    outcomes: list[Answer | Exception]
    started: float
    seconds: float

    @property
    def tokens(self) -> int:
        """Tokens of all jobs."""
        return sum(job.tokens for job in self.jobs)


class Batcher:
    """Answers requests in batches; every method but the worker's belongs to the server's loop.

    Args:
        answer: Answers requests, in order, unless `submit` names another. Runs in the worker
            thread alone.
        batch_tokens: Most tokens of a batch; a larger request runs alone.
        queue_items: Most requests that wait.
        queue_tokens: Most tokens that wait.
        observe: Called on the loop with every batch.
    """

    def __init__(
        self,
        answer: Answering,
        *,
        batch_tokens: int,
        queue_items: int,
        queue_tokens: int,
        observe: Callable[[Batch], None] = lambda batch: None,
    ) -> None:
        self._default = answer
        self._batch_tokens = batch_tokens
        self._queue_items = queue_items
        self._queue_tokens = queue_tokens
        self._observe = observe
        self._queue: deque[Job] = deque()
        self._tokens = 0
        self._changed = threading.Condition()  # guards the queue and its tokens
        self._open = True
        self._unanswered = 0
        self._tokens_per_second = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        # A daemon, because a batch that hangs must not keep the process after its grace period.
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)

    def start(self) -> None:
        """Starts the worker; answers arrive on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        """Lets the worker end once the queue is empty."""
        with self._changed:
            self._open = False
            self._changed.notify()

    @property
    def alive(self) -> bool:
        """Whether the worker runs."""
        return self._thread.is_alive()

    @property
    def items(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    @property
    def tokens(self) -> int:
        """Tokens that wait."""
        return self._tokens

    @property
    def unanswered(self) -> int:
        """Accepted requests without an answer, waiting or running."""
        return self._unanswered

    @property
    def full(self) -> bool:
        """Whether not even a small request has room."""
        return self.items >= self._queue_items or self._tokens >= self._queue_tokens

    def retry_after(self) -> int:
        """Whole seconds in which what waits should be answered, at least 1."""
        return max(1, math.ceil(self._tokens / self._tokens_per_second)) if self._rated else 1

    @property
    def _rated(self) -> bool:
        return self._tokens_per_second > 0

    def submit(
        self,
        requests: Sequence[Request],
        tokens: Sequence[int],
        answer: Answering | None = None,
        model: str = "",
    ) -> list[asyncio.Future[Answer]]:
        """Accepts all of these requests, or none.

        Args:
            requests: Checked.
            tokens: What each costs.
            answer: What answers them; a batch never mixes the requests of two.
            model: Hash of the model, for `observe`.

        Returns:
            For each the future of its answer; cancel it to drop the request from the queue.

        Raises:
            QueueFull: They do not fit beside what waits.
        """
        loop = asyncio.get_running_loop()
        arrived = time.perf_counter()
        jobs = [
            Job(
                request=request,
                tokens=cost,
                answer=answer or self._default,
                model=model,
                arrived=arrived,
                future=loop.create_future(),
            )
            for request, cost in zip(requests, tokens, strict=True)
        ]
        with self._changed:
            total = self._tokens + sum(tokens)
            if len(self._queue) + len(jobs) > self._queue_items or total > self._queue_tokens:
                raise QueueFull(self.retry_after())
            self._queue.extend(jobs)
            self._tokens = total
            self._changed.notify()
        self._unanswered += len(jobs)
        for job in jobs:
            job.future.add_done_callback(self._settled)
        return [job.future for job in jobs]

    def discard(self, futures: Sequence[asyncio.Future[Answer]]) -> int:
        """Cancels unfinished requests; returns how many had not begun."""
        for future in futures:
            future.cancel()
        with self._changed:
            kept = [job for job in self._queue if not job.future.cancelled()]
            dropped = len(self._queue) - len(kept)
            self._queue = deque(kept)
            self._tokens = sum(job.tokens for job in kept)
        return dropped

    def _settled(self, future: asyncio.Future[Answer]) -> None:
        self._unanswered -= 1

    def _take(self) -> list[Job]:
        """Waits for work; returns none when the batcher is closed and its queue is empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or not self._open)
            jobs: list[Job] = []
            room = self._batch_tokens
            while self._queue and (not jobs or self._joins(self._queue[0], jobs, room)):
                jobs.append(self._queue.popleft())
                room -= jobs[-1].tokens
                self._tokens -= jobs[-1].tokens
        return jobs

    @staticmethod
    def _joins(job: Job, jobs: list[Job], room: int) -> bool:
        return job.tokens <= room and job.answer is jobs[0].answer

    def _work(self) -> None:
        assert self._loop is not None
        while jobs := self._take():
            started = time.perf_counter()
            outcomes = self._answer(jobs)
            seconds = time.perf_counter() - started
            batch = Batch(jobs=jobs, outcomes=outcomes, started=started, seconds=seconds)
            try:
                self._loop.call_soon_threadsafe(self._deliver, batch)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

    def _answer(self, jobs: list[Job]) -> list[Answer | Exception]:
        """The outcome of each job; when a batch fails, each of its requests is tried alone."""
        try:
            answers = list(jobs[0].answer([job.request for job in jobs]))
            if len(answers) != len(jobs):
                raise RuntimeError(f"{len(answers)} answers to {len(jobs)} requests")
            return [*answers]
        except Exception as error:
            if len(jobs) == 1:
                return [error]
            log.warning(
                "a batch failed, each of its requests runs alone",
                extra={"fields": {"items": len(jobs), "error": type(error).__name__}},
            )
            return [outcome for job in jobs for outcome in self._answer([job])]

    def _deliver(self, batch: Batch) -> None:
        for job, outcome in zip(batch.jobs, batch.outcomes, strict=True):
            if job.future.done():
                continue  # the client has gone
            if isinstance(outcome, Exception):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)
        # A moving mean over about ten batches.
        speed = batch.tokens / max(batch.seconds, 1e-6)
        share = 0.1 if self._rated else 1.0
        self._tokens_per_second += share * (speed - self._tokens_per_second)
        self._observe(batch)
