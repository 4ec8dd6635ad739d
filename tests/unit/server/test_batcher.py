"""The queue of the server: order, bounds, dropped work, failures. No model, no HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from moe.requests import Request
from moe.server.batcher import Batch, Batcher, QueueFull


class HeldModel:
    """Notes its batches; each waits until `free` is set. Fails wherever a text is `boom`."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.free = threading.Event()
        self.begun = threading.Event()

    def answer(self, requests: Sequence[Request]) -> list[dict[str, Any]]:
        texts = [request.text for request in requests]
        self.batches.append(texts)
        self.begun.set()
        assert self.free.wait(10)
        if "boom" in texts:
            raise RuntimeError(f"cannot answer {texts}")
        return [{"said": text} for text in texts]


def asked(*texts: str) -> list[Request]:
    return [Request(text=text) for text in texts]


async def begun(model: HeldModel) -> None:
    """Until the worker has taken a batch."""
    await asyncio.to_thread(model.begun.wait, 10)


def run(
    body: Callable[[Batcher, HeldModel], Awaitable[None]], **changes: Any
) -> tuple[HeldModel, list[Batch]]:
    """Runs a body with a started batcher: ten tokens a batch, room for four requests."""
    model, seen = HeldModel(), []
    limits = {"batch_tokens": 10, "queue_items": 4, "queue_tokens": 30, **changes}

    async def main() -> None:
        batcher = Batcher(model.answer, observe=seen.append, **limits)
        batcher.start()
        try:
            await asyncio.wait_for(body(batcher, model), 20)
        finally:
            model.free.set()
            batcher.close()

    asyncio.run(main())
    return model, seen


def test_what_waits_goes_together_up_to_the_budget_in_order() -> None:
    async def body(batcher: Batcher, model: HeldModel) -> None:
        first = batcher.submit(asked("a"), [1])
        await begun(model)  # so that the others wait
        second = batcher.submit(asked("b", "c"), [4, 6])
        third = batcher.submit(asked("d"), [1])
        assert (batcher.items, batcher.tokens, batcher.unanswered) == (3, 11, 4)
        model.free.set()
        answers = await asyncio.gather(*first, *second, *third)
        assert [answer["said"] for answer in answers] == ["a", "b", "c", "d"]
        assert (batcher.items, batcher.tokens, batcher.unanswered) == (0, 0, 0)

    model, seen = run(body)
    # a runs at once and alone; b and c are 10 tokens, the whole budget; d would be 11.
    assert model.batches == [["a"], ["b", "c"], ["d"]]
    assert [batch.tokens for batch in seen] == [1, 10, 1]


def test_a_request_above_the_budget_runs_alone_and_holds_up_nobody() -> None:
    async def body(batcher: Batcher, model: HeldModel) -> None:
        first = batcher.submit(asked("a"), [1])
        await begun(model)
        rest = batcher.submit(asked("long", "b"), [25, 2])
        model.free.set()
        await asyncio.gather(*first, *rest)

    assert run(body)[0].batches == [["a"], ["long"], ["b"]]


@pytest.mark.parametrize(
    ("texts", "tokens"),
    [(["b", "c", "d", "e", "f"], [1] * 5), (["b", "c"], [16, 15])],
    ids=["five where four fit", "31 tokens where 30 fit"],
)
def test_a_full_queue_takes_nothing_of_a_request(texts: list[str], tokens: list[int]) -> None:
    async def body(batcher: Batcher, model: HeldModel) -> None:
        first = batcher.submit(asked("a"), [1])
        await begun(model)
        with pytest.raises(QueueFull) as error:
            batcher.submit(asked(*texts), tokens)
        assert error.value.retry_after >= 1
        assert (batcher.items, batcher.tokens, batcher.unanswered) == (0, 0, 1)
        model.free.set()
        await asyncio.gather(*first, *batcher.submit(asked("last"), [30]))

    assert run(body)[0].batches == [["a"], ["last"]]


def test_full_says_when_nothing_more_fits() -> None:
    async def body(batcher: Batcher, model: HeldModel) -> None:
        first = batcher.submit(asked("a"), [1])
        await begun(model)
        three = batcher.submit(asked("b", "c", "d"), [1, 1, 1])
        assert not batcher.full
        fourth = batcher.submit(asked("e"), [1])
        assert batcher.full
        model.free.set()
        await asyncio.gather(*first, *three, *fourth)
        assert not batcher.full

    run(body)


def test_retry_after_is_what_waits_over_the_measured_speed() -> None:
    async def body(batcher: Batcher, model: HeldModel) -> None:
        assert batcher.retry_after() == 1  # nothing is known yet
        model.free.set()
        await asyncio.gather(*batcher.submit(asked("a"), [1]))
        batcher._tokens_per_second = 4.0
        model.free.clear()
        model.begun.clear()
        running = batcher.submit(asked("b"), [1])
        await begun(model)
        waiting = batcher.submit(asked("c"), [30])
        assert batcher.retry_after() == 8  # 30 / 4 = 7.5
        model.free.set()
        await asyncio.gather(*running, *waiting)

    run(body)


def test_dropped_requests_leave_the_queue_and_never_run() -> None:
    async def body(batcher: Batcher, model: HeldModel) -> None:
        running = batcher.submit(asked("a"), [1])
        await begun(model)
        gone = batcher.submit(asked("b", "c"), [5, 5])
        stays = batcher.submit(asked("d"), [2])
        assert batcher.discard(gone) == 2
        assert (batcher.items, batcher.tokens) == (1, 2)
        assert batcher.discard(running) == 0  # it runs already; its answer is thrown away
        model.free.set()
        assert await stays[0] == {"said": "d"}
        assert batcher.unanswered == 0

    assert run(body)[0].batches == [["a"], ["d"]]


def test_a_failing_batch_is_tried_one_by_one() -> None:
    async def body(batcher: Batcher, model: HeldModel) -> None:
        first = batcher.submit(asked("a"), [1])
        await begun(model)
        rest = batcher.submit(asked("b", "boom", "c"), [1, 1, 1])
        model.free.set()
        said = await asyncio.gather(*first, *rest, return_exceptions=True)
        assert [said[i] for i in (0, 1, 3)] == [{"said": "a"}, {"said": "b"}, {"said": "c"}]
        assert isinstance(said[2], RuntimeError) and "boom" in str(said[2])
        assert await batcher.submit(asked("after"), [1])[0] == {"said": "after"}
        assert batcher.alive

    model, seen = run(body)
    assert model.batches[1:] == [["b", "boom", "c"], ["b"], ["boom"], ["c"], ["after"]]
    assert [isinstance(outcome, Exception) for outcome in seen[1].outcomes] == [False, True, False]


def test_a_model_that_answers_too_little_fails() -> None:
    async def main() -> None:
        batcher = Batcher(lambda requests: [], batch_tokens=1, queue_items=1, queue_tokens=1)
        batcher.start()
        with pytest.raises(RuntimeError, match="0 answers to 1 requests"):
            await batcher.submit(asked("a"), [1])[0]
        batcher.close()

    asyncio.run(main())


def test_a_closed_batcher_answers_what_it_has_and_ends() -> None:
    async def body(batcher: Batcher, model: HeldModel) -> None:
        first = batcher.submit(asked("a"), [1])
        await begun(model)
        last = batcher.submit(asked("b"), [1])
        batcher.close()
        model.free.set()
        assert await asyncio.gather(*first, *last) == [{"said": "a"}, {"said": "b"}]
        await asyncio.to_thread(batcher._thread.join, 10)
        assert not batcher.alive

    run(body)


def test_requests_of_two_models_are_never_in_one_batch() -> None:
    other = HeldModel()
    other.free.set()

    async def body(batcher: Batcher, model: HeldModel) -> None:
        first = batcher.submit(asked("a"), [1])
        await begun(model)
        rest = [*batcher.submit(asked("b"), [1]), *batcher.submit(asked("c"), [1], other.answer)]
        rest += batcher.submit(asked("d"), [1])
        model.free.set()
        await asyncio.gather(*first, *rest)

    assert run(body)[0].batches == [["a"], ["b"], ["d"]]
    assert other.batches == [["c"]]
