"""Requests that a model must answer as written, whatever the averages say.

One JSON object a line: `{"request": {...}, "expect": {...}}`. `expect` names what must hold:
`task` (the gate's first), `label`, `answer` (text of a span), `out_of_scope`, `no_answer`,
`abstained`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe.data.formats import Place
from moe.data.sources import read_json_lines
from moe.predictor import Predictor
from moe.release.expect import EXPECTED, failures
from moe.release.rules import Verdict
from moe.types import InputError


def read_canaries(path: Path) -> list[dict[str, Any]]:
    """The canaries of a file, checked.

    Raises:
        InputError: With line, field and value.
    """
    table = read_json_lines(path.name, root=path.parent, split="test")
    return [_checked(place, row) for place, row in table.rows]


def _checked(place: Place, row: Mapping[str, Any]) -> dict[str, Any]:
    if set(row) != {"request", "expect"}:
        raise place.error("canary", sorted(row), "the fields request and expect")
    if not isinstance(row["request"], dict):
        raise place.error("request", row["request"], "an object with text")
    expect = row["expect"]
    if not isinstance(expect, dict) or not expect:
        raise place.error("expect", expect, f"an object with some of {sorted(EXPECTED)}")
    for name, value in expect.items():
        if name not in EXPECTED:
            raise place.error(f"expect.{name}", value, f"one of {sorted(EXPECTED)}")
        if not isinstance(value, EXPECTED[name]):
            raise place.error(f"expect.{name}", value, f"a {EXPECTED[name].__name__}")
    return dict(row)


def judge_canaries(model: Predictor, canaries: Sequence[Mapping[str, Any]]) -> list[Verdict]:
    """A verdict on each canary; a request that the model does not take is refused, too."""
    return [_judged(model, number, canary) for number, canary in enumerate(canaries, start=1)]


def _judged(model: Predictor, number: int, canary: Mapping[str, Any]) -> Verdict:
    name = f"canary/{number}"
    text = str(canary["request"].get("text"))[:60]
    try:
        wrong = failures(canary["expect"], model.predict(dict(canary["request"])))
    except InputError as error:
        wrong = [str(error)]
    reason = f"{text!r}: {'; '.join(wrong)}" if wrong else f"{text!r}"
    return Verdict(name=name, outcome="refused" if wrong else "passed", reason=reason)
