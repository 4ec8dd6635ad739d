"""What goes in decides what comes out; a stream holds a window and no more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from datasets import Dataset

from moe.requests import Request, parse_request
from moe.streams import WINDOW, respond, table_request, windows
from moe.types import InputError, TaskSpec

TASKS = (TaskSpec(name="mood", type="classifier", num_experts=1, labels=("a", "b")),)


def parse(value: Any) -> Request:
    return parse_request(value, TASKS)


def echo(requests: Sequence[Request]) -> list[dict[str, Any]]:
    assert 0 < len(requests) <= WINDOW
    return [{"said": request.text, "id": request.id} for request in requests]


def test_one_gives_one() -> None:
    assert respond("a", parse, echo) == {"said": "a", "id": None}
    assert respond({"text": "a", "id": "7"}, parse, echo) == {"said": "a", "id": "7"}


@pytest.mark.parametrize("kind", [list, tuple, dict.fromkeys])
def test_what_has_a_length_gives_a_list(kind: Any) -> None:
    texts = kind([f"text {k}" for k in range(WINDOW + 3)])
    texts = texts.keys() if isinstance(texts, dict) else texts
    said = respond(texts, parse, echo)
    assert isinstance(said, list)
    assert [answer["said"] for answer in said] == [f"text {k}" for k in range(WINDOW + 3)]
    assert respond(kind([]) or [], parse, echo) == []


def test_a_generator_gives_a_generator_that_reads_one_window() -> None:
    read: list[int] = []

    def texts() -> Iterator[str]:
        for k in range(3 * WINDOW):
            read.append(k)
            yield f"text {k}"

    said = respond(texts(), parse, echo)
    assert not read  # nothing happens before it is asked
    assert next(said)["said"] == "text 0" and len(read) == WINDOW
    assert [answer["said"] for answer in said] == [f"text {k}" for k in range(1, 3 * WINDOW)]


def test_a_malformed_request_of_a_list_stops_all_of_it() -> None:
    def never(_: Sequence[Request]) -> list[dict[str, Any]]:
        raise AssertionError("something was computed")

    with pytest.raises(InputError, match=r"requests\[513\]: request: text is empty, got ' '"):
        respond(["a"] * 513 + [" "], parse, never)
    with pytest.raises(InputError, match=r"an iterable of these, got int 7"):
        respond(7, parse, never)


def test_a_malformed_request_of_a_stream_stops_its_window() -> None:
    said = respond((text for text in ["a"] * WINDOW + ["b", ""]), parse, echo)
    for _ in range(WINDOW):
        next(said)
    with pytest.raises(InputError, match=r"requests\[513\]"):
        next(said)


def test_a_data_set_gives_a_list_and_its_stream_a_stream() -> None:
    rows = {"text": ["a", "b"], "id": [3, None], "label": ["x", "y"], "context": [None, "c d"]}
    dataset = Dataset.from_dict(rows)
    expected = [{"said": "a", "id": "3"}, {"said": "b", "id": None}]
    assert respond(dataset, parse, echo) == expected
    stream = respond(dataset.to_iterable_dataset(), parse, echo)
    assert not isinstance(stream, list) and list(stream) == expected
    assert respond(dataset.with_format("torch"), parse, echo) == expected
    with pytest.raises(InputError, match=r"no column 'text', the columns are .'sentence'"):
        respond(Dataset.from_dict({"sentence": ["a"]}), parse, echo)


def test_a_row_of_a_table_keeps_what_a_request_has() -> None:
    assert table_request({"text": "a", "id": 0, "label": 1}) == {"text": "a", "id": "0"}
    assert table_request({"text": "a", "id": None}) == {"text": "a", "id": None}


def test_windows_are_full_but_for_the_last() -> None:
    requests = [parse(f"text {k}") for k in range(2 * WINDOW + 1)]
    cut = list(windows(iter(requests)))
    assert [len(window) for window in cut] == [WINDOW, WINDOW, 1]
    assert [r for window in cut for r in window] == requests
    assert list(windows([])) == []
