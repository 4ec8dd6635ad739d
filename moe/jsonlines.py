"""Requests as JSON lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moe.requests import parse_request
from moe.types import InputError, TaskSpec


def read_requests(source: str, tasks: Sequence[TaskSpec]) -> list[dict[str, Any]]:
    """The requests of a file with one JSON object or string a line; `-` reads stdin.

    Raises:
        InputError: The file cannot be read, or a line is no request; the message has its number.
    """
    try:
        raw = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
        lines = raw.decode("utf-8").split("\n")
    except OSError as error:
        raise InputError(f"--input {source}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--input {source}: not UTF-8 at byte {error.start}") from error
    requests = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                value = json.loads(line)
                parse_request(value, tasks)
            except (json.JSONDecodeError, InputError) as error:
                raise InputError(f"{source}, line {number}: {error}") from error
            requests.append({"text": value} if isinstance(value, str) else value)
    if not requests:
        raise InputError(f"--input {source}: no request in the file")
    return requests
