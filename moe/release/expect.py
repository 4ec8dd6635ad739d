"""Whether an answer is as expected; the standard library alone, for the server, too."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

EXPECTED: Mapping[str, type] = {
    "task": str,
    "label": str,
    "answer": str,
    "out_of_scope": bool,
    "no_answer": bool,
    "abstained": bool,
}


def failures(expect: Mapping[str, Any], answer: Mapping[str, Any]) -> list[str]:
    """What an answer lacks of the expected, in words.

    Args:
        expect: Some of `EXPECTED`: the gate's first task, and of its answer the label, the text
            of the span (case and punctuation around it do not count) and the refusals.
        answer: Of a model.
    """
    task = answer["routing"][0]["task"]
    said = answer["answers"].get(task, {})
    found = {"task": task, "abstained": answer["abstained"], "answer": said.get("text")}
    found |= {name: said.get(name) for name in ("label", "out_of_scope", "no_answer")}
    return [
        f"{name} is {found[name]!r}, expected {value!r}"
        for name, value in expect.items()
        if not _same(found[name], value)
    ]


def _same(found: Any, expected: Any) -> bool:
    if isinstance(found, str) and isinstance(expected, str):
        return _plain(found) == _plain(expected)
    return bool(found == expected)


def _plain(text: str) -> str:
    return text.casefold().strip(string.punctuation + string.whitespace)
