"""One request, a list, a data set or a stream: what comes in decides what goes out.

Without torch, so that every backend shares it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import Any

from moe.requests import Request
from moe.types import InputError

WINDOW = 512  # requests that are sorted by length and answered together
COLUMNS = ("id", "text", "context", "tasks")  # of a table; others are not read

Parse = Callable[[Any], Request]
Answer = Callable[[Sequence[Request]], list[dict[str, Any]]]


def respond(requests: Any, parse: Parse, answer: Answer) -> Any:
    """A text or an object gives one answer; what has a length, a list; else an iterator.

    Args:
        requests: A text, a request object, a `datasets` data set, or an iterable of the first two.
        parse: Checks one of them.
        answer: Answers at most `WINDOW` requests, in their order.

    Raises:
        InputError: A request is malformed. With a length nothing is computed then; an iterator
            has given the answers of the windows before.
    """
    if isinstance(requests, str | dict):
        return answer([parse(requests)])[0]
    if not isinstance(requests, Iterable):
        raise InputError(
            "predict: expected a text, an object, or an iterable of these, got "
            f"{type(requests).__name__} {requests!r:.60}"
        )
    parsed = _parsed(_rows(requests), parse)
    if not isinstance(requests, Sized):
        return _stream(parsed, answer)
    return list(_stream(list(parsed), answer))


def windows(requests: Iterable[Request]) -> Iterator[list[Request]]:
    """Lists of `WINDOW` requests in their order, the last one shorter; holds one at a time."""
    source = iter(requests)
    while window := list(islice(source, WINDOW)):
        yield window


def table_request(row: Mapping[str, Any]) -> dict[str, Any]:
    """The request in a row of a table: columns that no request has are left out.

    Numbers in `id` become text, since that is how tables are numbered.
    """
    request = {name: row[name] for name in COLUMNS if name in row}
    if request.get("id") is not None:
        request["id"] = str(request["id"])
    return request


def check_columns(columns: Sequence[str], source: str) -> None:
    """Raises an `InputError` if a table has no column `text`."""
    if "text" not in columns:
        raise InputError(
            f"{source}: no column 'text', the columns are {sorted(columns)}: rename the one that "
            f"holds the texts; read are {', '.join(COLUMNS)}"
        )


def _rows(requests: Any) -> Iterable[Any]:
    # By its looks, so that a request does not import datasets.
    if not (hasattr(requests, "column_names") and hasattr(requests, "with_format")):
        rows: Iterable[Any] = requests
        return rows
    if requests.column_names is not None:  # a stream may not know them
        check_columns(requests.column_names, "data set")
    return map(table_request, requests.with_format(None))


def _parsed(rows: Iterable[Any], parse: Parse) -> Iterator[Request]:
    for number, row in enumerate(rows):
        try:
            request = parse(row)
        except InputError as error:
            raise InputError(f"requests[{number}]: {error}") from error
        yield request


def _stream(requests: Iterable[Request], answer: Answer) -> Iterator[dict[str, Any]]:
    for window in windows(requests):
        yield from answer(window)
