"""Corrections: what is taken, what is kept, and what is left out of learning."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe import feedback
from moe.data.sources import read_source
from moe.feedback import (
    Correction,
    Held,
    Quarantine,
    QuotaReached,
    hold,
    parse_correction,
    read_quarantine,
)
from moe.review import review, write_rows
from moe.types import InputError, TaskSpec

INTENT = TaskSpec(name="intent", type="classifier", num_experts=1, labels=("pay", "ask"),
                  out_of_scope="oos")
MOOD = TaskSpec(name="mood", type="classifier", num_experts=1, labels=("bad", "good"))
QA = TaskSpec(name="qa", type="span", num_experts=1)
SLOTS = TaskSpec(name="slots", type="tagger", num_experts=1, labels=("O", "B-city", "I-city"))
TASKS = (INTENT, MOOD, QA, SLOTS)


def held(text: str, label: str = "pay", source: str = "a", contradicts: bool = False) -> Held:
    correction = Correction(text=text, context=None, task="intent", label=label)
    return Held(time="2026-11-22T10:00:00+00:00", source=source, model="abc",
                correction=correction, said={}, contradicts=contradicts)


@pytest.mark.parametrize(("value", "part"), [
    ("pay", "expected an object, got str 'pay'"),
    ({"text": "a", "task": "intent", "lable": "pay"}, "unknown field 'lable', known: id, text"),
    ({"text": "a", "task": "weather", "label": "pay"}, "'mood', 'qa', 'slots'], got 'weather'"),
    ({"text": "a", "label": "pay"}, "'mood', 'qa', 'slots'], got None"),
    ({"text": " ", "task": "intent", "label": "pay"}, "text is empty"),
    ({"text": "a", "task": "intent", "label": "go"}, "2 of intent or null (pay, ask), got 'go'"),
    ({"text": "a", "task": "intent"}, "label must be one of the 2 of intent"),
    ({"text": "a", "task": "mood", "label": None}, "2 of mood (bad, good), got None"),
    ({"text": "a", "task": "mood", "label": "bad", "answer": "a"}, "label must be one of"),
    ({"text": "a", "task": "slots", "label": "B-city"}, "'slots' is a tagger; corrections are for"),
    ({"text": "a", "task": "qa", "answer": "x"}, "task 'qa' needs a context"),
    ({"text": "a", "context": "by Ada", "task": "qa", "answer": "Bob"}, "a piece of the context"),
    ({"text": "a", "context": "by Ada", "task": "qa", "label": "pay"}, "a piece of the context"),
])  # fmt: skip
def test_what_is_no_correction(value: Any, part: str) -> None:
    with pytest.raises(InputError) as error:
        parse_correction(value, TASKS)
    assert part in str(error.value)


def test_what_is_one() -> None:
    found, request = parse_correction({"text": "a", "task": "intent", "label": None}, TASKS)
    assert found.label == "oos" and request.tasks == ("intent",)
    span = {"text": "who?", "context": "by Ada", "task": "qa", "answer": "Ada"}
    assert parse_correction(span, TASKS)[0].answer == "Ada"
    assert parse_correction({**span, "answer": ""}, TASKS)[0].answer == ""


@pytest.mark.parametrize(("spec", "right", "said", "contradicts"), [
    (INTENT, {"label": "pay"}, {"label": "ask", "score": 0.95}, True),
    (INTENT, {"label": "pay"}, {"label": "ask", "score": 0.85}, False),  # the model is not sure
    (INTENT, {"label": "pay"}, {"label": "pay", "score": 0.95}, False),
    (INTENT, {"label": "oos"}, {"label": None, "score": 0.95, "out_of_scope": True}, False),
    (INTENT, {"label": "pay"}, {"label": None, "score": 0.95, "out_of_scope": True}, True),
    (QA, {"answer": "Ada"}, {"text": "Ada", "score": 0.95}, False),
    (QA, {"answer": ""}, {"text": "Ada", "score": 0.95}, True),
])  # fmt: skip
def test_a_correction_may_contradict_a_sure_answer(
    spec: TaskSpec, right: dict[str, str], said: dict[str, Any], contradicts: bool
) -> None:
    correction = Correction(text="a", context="by Ada", task=spec.name, **right)
    found = hold(correction, spec, source="a", model="abc", said=said)
    assert found.contradicts is contradicts


def test_a_source_has_a_share_of_the_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quarantine = Quarantine(tmp_path, per_source=2)
    said = {"label": "pay", "score": 0.9}
    for number in range(2):
        quarantine.admit("a")
        correction = Correction(text=str(number), context=None, task="intent", label="pay")
        quarantine.keep(hold(correction, INTENT, source="a", model="", said=said))
    with pytest.raises(QuotaReached, match="at most 2 corrections a day from one source"):
        quarantine.admit("a")
    quarantine.admit("b")
    with pytest.raises(QuotaReached):
        Quarantine(tmp_path, per_source=2).admit("a")  # a restart forgets nothing
    later = feedback._now().replace(year=2030)
    monkeypatch.setattr(feedback, "_now", lambda: later)
    quarantine.admit("a")
    assert [row.correction.text for row in read_quarantine(tmp_path)] == ["0", "1"]


def test_a_line_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    quarantine.keep(held("a"))
    file = next(tmp_path.glob("feedback-20261122.jsonl"))
    whole = file.read_text()
    file.write_text(whole + whole[:20])
    assert read_quarantine(tmp_path) == [held("a")]
    file.write_text(whole[:20] + "\n" + whole)
    with pytest.raises(InputError, match="line 1: no correction"):
        read_quarantine(tmp_path)
    with pytest.raises(InputError, match="no feedback"):
        read_quarantine(tmp_path / "nowhere")
    (tmp_path / "plain").touch()
    with pytest.raises(InputError, match="plain: cannot be written"):
        Quarantine(tmp_path / "plain")


def test_corrections_of_one_text_in_different_ways_are_left_out() -> None:
    rows = [held("pay  it", "pay", "a"), held("Pay it", "ask", "b"), held("go", "pay", "a"),
            held("go", "pay", "b")]
    found = review(rows)
    assert [c.text for c in found.usable] == ["go"]
    assert found.left_out == {"corrected in different ways": 2, "sent before": 1}


def test_a_source_that_flips_sure_answers_is_left_out_unless_trusted() -> None:
    flipping = [held(f"text {k}", source="bad", contradicts=k < 6) for k in range(10)]
    fair = [held(f"other {k}", source="good", contradicts=k < 5) for k in range(10)]
    few = [held(f"few {k}", source="new", contradicts=True) for k in range(9)]
    found = review([*flipping, *fair, *few])
    assert {c.text.split()[0] for c in found.usable} == {"other", "few"}
    assert found.left_out == {"source bad contradicts sure answers": 10}
    assert len(review(flipping, trusted=["bad"]).usable) == 10


def test_how_sure_an_answer_is_depends_on_the_model() -> None:
    unsure = [replace(held(f"text {k}", source="bad"), said={"score": 0.8}, differs=True)
              for k in range(10)]
    assert len(review(unsure).usable) == 10  # 0.8 is below 0.9
    assert len(review(unsure, sure={"mood": 0.7}).usable) == 10  # another task's
    assert len(review(unsure, sure={"intent": 0.81}).usable) == 10
    found = review(unsure, sure={"intent": 0.75})
    assert found.left_out == {"source bad contradicts sure answers": 10}
    same = [replace(row, differs=False) for row in unsure]
    assert len(review(same, sure={"intent": 0.75}).usable) == 10
    before = [replace(row, differs=None) for row in unsure]  # of an older file
    assert len(review(before, sure={"intent": 0.75}).usable) == 10


def test_what_is_usable_is_a_source_of_rows(tmp_path: Path) -> None:
    span = Correction(text="who?", context="by Ada", task="qa", answer="Ada")
    none = Correction(text="when?", context="by Ada", task="qa", answer="")
    written = write_rows([held("a", "oos").correction, span, none], tmp_path / "rows")
    assert [path.name for path in written] == ["intent.jsonl", "qa.jsonl"]
    labels = read_source("intent.jsonl", root=tmp_path / "rows", split="train", type="classifier")
    assert [(e.text, e.label) for e in labels] == [("a", "oos")]
    spans = read_source("qa.jsonl", root=tmp_path / "rows", split="train", type="span")
    assert [[a.text for a in e.answers] for e in spans] == [["Ada"], []]
    assert json.loads((tmp_path / "rows" / "qa.jsonl").read_text().splitlines()[0]) == {
        "question": "who?", "context": "by Ada", "answer": "Ada",
    }  # fmt: skip
