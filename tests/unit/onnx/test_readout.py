"""Experts' answers in a micro-batch, by hand: three windows of two requests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moe.data.windows import Window
from moe.decode import stack_votes
from moe.forms import Source
from moe.forms.span import read as read_span
from moe.onnx.readout import Chunk, Said, read_task
from moe.onnx.routing import Decision
from moe.requests import Request


def ids(*numbers: int) -> Any:
    return np.array(numbers, dtype=np.int32)


@pytest.fixture
def chunk() -> Chunk:
    """A text; and a question of two tokens on a passage of three, in windows of two of these."""
    return Chunk(
        requests=[Request(text="a"), Request(text="b c", context="d e f")],
        windows=[Window(text_ids=ids(5)),
                 Window(text_ids=ids(6, 7), context_ids=ids(8, 9), first=0),
                 Window(text_ids=ids(6, 7), context_ids=ids(9, 4), first=1)],
        owner_B=np.array([0, 1, 1]), first_N=np.array([0, 1]), offsets=[None, None],
    )


def said(weight: Any, logits: dict[int, Any]) -> Said:
    nothing: Any = None
    return Said(
        pooled_ND=nothing, allowed_NT=nothing,
        decision=Decision(probability_NE=nothing, mass_NT=nothing, tasks_NT=nothing,
                          weight_NE=np.array(weight, dtype=np.float64)),
        logits={expert: np.array(values, dtype=np.float32) for expert, values in logits.items()},
    )


def test_windows_of_a_request_share_a_mean(chunk: Chunk) -> None:
    values = np.array([[1, 2], [3, 4], [5, 8]], dtype=np.float32)
    assert chunk.mean(values).tolist() == [[1, 2], [4, 6]]
    assert chunk.mean(values).dtype == np.float32


def test_votes_are_read_off_first_windows(chunk: Chunk) -> None:
    # Expert 0 answers both requests, expert 1 the second one; the last window has no vote.
    windows = read_task(chunk, said([[1.0, 0.0], [0.25, 0.75]],
                                    {0: [[1, 2], [3, 4], [9, 9]], 1: [[0, 0], [5, 6], [9, 9]]}),
                        range(2), every_window=False)
    assert [len(own) for own in windows.values()] == [1, 1]
    read = stack_votes([windows[0][0], windows[1][0]])
    assert read.row_P.tolist() == [0, 1, 1]
    assert read.expert_P.tolist() == [0, 0, 1]
    assert read.weight_P.tolist() == [1.0, 0.25, 0.75]
    assert read.logits_PC.tolist() == [[1, 2], [3, 4], [5, 6]]


def test_a_span_is_looked_for_in_every_window(chunk: Chunk) -> None:
    # A window is [CLS] b c [SEP] two tokens [SEP]: the passage is at 4 and 5. In the second the
    # token at 5, the passage's third, is almost sure. Padding to 8 would be wrong to read.
    low = -1e9
    even = [[0, 0], [low, low], [low, low], [low, low], [0, 0], [0, 0], [low, low], [99, 99]]
    sure = [[0, 0], [low, low], [low, low], [low, low], [0, 0], [9, 9], [low, low], [99, 99]]
    windows = read_task(chunk, said([[0.0], [1.0]], {0: [sure, even, sure]}), range(1),
                        every_window=True)
    assert list(windows) == [1]  # the first request did not choose the expert
    source = Source(text="b c", context="d e f", offsets=np.array([[0, 1], [2, 3], [4, 5]]),
                    words=lambda: pytest.fail("a span needs no words"))
    choice = read_span(windows[1], source)
    assert (choice.start, choice.end, choice.text) == (4, 5, "f")
    # e^9 of e^9 + 2 for start and end; no answer has 1 of them.
    share = np.exp(9) / (np.exp(9) + 2)
    assert choice.score == pytest.approx(share**2, rel=1e-6)
    assert choice.null == pytest.approx((1 / (np.exp(9) + 2)) ** 2, rel=1e-6)
