"""The part of the check of consumers that judges: it sees what is lost, doubled, unexplained."""

from __future__ import annotations

import json
from typing import Any

from moe.chaos.events import POISON, judge, rows, unexplained
from moe.chaos.report import Report

MIXED = [("r0", b""), ("p0", POISON[0][0]), ("r1", b"")]


def answer(key: str, label: str = "good", score: float = 0.5) -> dict[str, Any]:
    return {"body": json.dumps({"id": key, "label": label, "score": score}).encode()}


def letter(place: str, reason: str) -> dict[str, Any]:
    return {"body": json.dumps({"place": place, "reason": reason}).encode()}


DEAD = [letter("s/2", f"so: {POISON[0][1]}: char 1")]


def judged(answers: list[Any], dead: list[Any]) -> Report:
    report = Report(name="events")
    judge(report, "b", MIXED, answers, dead)
    return report


def test_rows_hold_poison_of_every_kind_spread_out() -> None:
    mixed = rows(2000, poison=20)
    bad = [(place, body) for place, (key, body) in enumerate(mixed) if key.startswith("p")]
    assert len(mixed) == 2020 and len({key for key, _ in mixed}) == 2020
    assert [body for _, body in bad] == [body for body, _ in POISON] * 2
    # After every hundredth request; each moves the next by one.
    assert [place for place, _ in bad] == [100 + 101 * number for number in range(20)]


def test_all_is_well() -> None:
    rounded = answer("r1", score=0.5000001)  # in another batch
    report = judged([answer("r0"), answer("r1"), rounded], [*DEAD, *DEAD])
    assert report.failures == [] and report.cases == 2
    assert report.numbers == {"b_answers": 3, "b_distinct": 2, "b_dead": 1}


def test_what_is_wrong_is_seen() -> None:
    lost = judged([answer("r0")], DEAD)
    assert lost.failures == ["b: answers: 1 lost, such as ['r1']"]
    other = judged([answer("r0"), answer("r1"), answer("r1", "bad")], DEAD)
    assert other.failures == ["b: answers: 1 with several answers, such as ['r1']"]
    strange = judged([answer("r0"), answer("r1"), answer("r9")], DEAD)
    assert strange.failures == ["b: answers: 1 answers to nothing, such as ['r9']"]


def test_a_dead_letter_needs_its_reason() -> None:
    part = POISON[0][1]
    assert unexplained(MIXED, DEAD) == []
    assert unexplained(MIXED, []) == [f"1 messages should die of {part!r}, 0 did",
                                      "0 dead letters, expected 1"]
    assert unexplained(MIXED, [letter("s/2", "unwell")]) == [
        f"1 messages should die of {part!r}, 0 did"]
    assert unexplained(MIXED, [*DEAD, letter("s/1", "unwell")]) == ["2 dead letters, expected 1"]
