"""Tokenized rows: labels, answers in tokens, the cache, and what training draws from."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe.data import tables
from moe.data.augment import add_noise
from moe.data.formats import Answer, Example
from moe.data.tables import TaskTable, build_table, training_items
from moe.data.windows import TextTokenizer, make_windows
from moe.types import InputError, TaskSpec

INTENT = TaskSpec(name="intent", type="classifier", num_experts=1, labels=("pay", "ask", "go"),
                  out_of_scope="oos")
QA = TaskSpec(name="qa", type="span", num_experts=1)
CONTEXT = "An abbot led  the monks, very good ones."


@pytest.fixture
def build(word_tokenizer: TextTokenizer, tmp_path: Path) -> Any:
    def build(examples: list[Example], spec: TaskSpec = INTENT, tokenizer: Any = None) -> TaskTable:
        return build_table(examples, spec, 3, tokenizer or word_tokenizer, tmp_path / "cache")
    return build


def question(*answers: str, text: str = "Who led?", context: str = CONTEXT) -> Example:
    found = tuple(Answer(text=answer, start=context.index(answer)) for answer in answers)
    return Example(text=text, context=context, answers=found)


# --- labels -----------------------------------------------------------------------------------


def test_labels(build) -> None:
    names = ["go", "pay", "oos", "ask", "1"]  # a number stands for its name
    table = build([Example(text=f"t {name}", label=name) for name in names])
    assert table.labels().tolist() == [2, 0, 3, 1, 1]
    assert len(table) == 5
    assert table.task == 3


@pytest.mark.parametrize(("label", "shown"), [("run", "'run'"), ("3", "'3'"), (None, "''")])
def test_an_unknown_label_is_named(build, label: str | None, shown: str) -> None:
    with pytest.raises(InputError) as raised:
        build([Example(text="the text", label=label)])
    message = str(raised.value)
    assert f"task intent: label {shown} of 'the text'" in message
    assert "3 labels (pay, ask, go)" in message and "tasks.intent.labels" in message


def test_without_an_out_of_scope_label_none_is_known(build) -> None:
    with pytest.raises(InputError, match="label 'oos'"):
        build([Example(text="t", label="oos")], replace(INTENT, out_of_scope=None))


def test_a_number_that_is_a_name(build) -> None:
    spec = replace(INTENT, labels=("2", "0", "1"))
    assert build([Example(text="t", label="0")], spec).labels().tolist() == [1]


# --- answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "expected"), [
    ("abbot", "abbot"), ("An abbot", "An abbot"), ("led  the monks", "led  the monks"),
    ("monks", "monks"), (CONTEXT, CONTEXT), ("ones", "ones"),
    ("bbo", "abbot"),        # a piece of a token: the whole token
    ("bot led", "abbot led"),
])
def test_tokens_of_an_answer_give_back_its_text(build, answer: str, expected: str) -> None:
    row, = build([question(answer)], QA).read([0])
    offsets = row["offsets"].reshape(-1, 2)
    first, last = row["span"]
    assert CONTEXT[offsets[first, 0] : offsets[last, 1]] == expected


def test_the_answer_of_most_annotators_is_learned(build) -> None:
    examples = [question("abbot", "monks", "monks"), question("abbot", "monks"), question()]
    rows = build(examples, QA).read([0, 1, 2])
    # Tokens: An abbot led the monks ...; the first given among equals.
    assert [row["span"].tolist() for row in rows] == [[4, 4], [1, 1], [-1, -1]]
    assert [list(row["answers"]) for row in rows] == [
        ["abbot", "monks", "monks"], ["abbot", "monks"], []]


def test_an_answer_of_nothing_but_white_space_has_no_tokens(build) -> None:
    blank = Example(text="t", context=CONTEXT, answers=(Answer(text=" ", start=12),))
    row, = build([blank], QA).read([0])
    assert row["span"].tolist() == [-1, -1]


# --- rows -------------------------------------------------------------------------------------


def test_read_gives_tokens_in_the_order_asked(build, word_tokenizer) -> None:
    texts = ["the abbot led", "Good film!", "very bad"]
    table = build([Example(text=text, label="go") for text in texts])
    rows = table.read([2, 0])
    assert [row["text"] for row in rows] == ["very bad", "the abbot led"]
    for row in rows:
        (tokens, _), (noised, _) = word_tokenizer.encode([row["text"], add_noise(row["text"])])
        assert row["text_ids"].tolist() == tokens.tolist()
        assert row["noised_ids"].tolist() == noised.tolist()
        assert len(row["context_ids"]) == 0


def test_more_rows_than_are_tokenized_at_once(build, monkeypatch) -> None:
    monkeypatch.setattr(tables, "_CHUNK", 3)
    examples = [Example(text="the " * (i + 1), label="go") for i in range(8)]
    table = build(examples)
    assert table.lengths("text_ids").tolist() == list(range(1, 9))


def test_lengths(build) -> None:
    table = build([question("abbot"), question(text="Who was good")], QA)
    assert table.lengths("text_ids").tolist() == [3, 3]       # Who led ?
    # An abbot led the monks , very good o n e s .
    assert table.lengths("context_ids").tolist() == [13, 13]
    assert table.labels().tolist() == [-1, -1]


def test_windows_of_a_row(build) -> None:
    table = build([question("abbot"), Example(text="Who led", context=None)], QA)
    with_context, without = (
        table.windows(row, max_length=16, stride=2) for row in table.read([0, 1])
    )
    # 16 - 3 - 3 = 10 of 13 tokens fit: the second window begins at 3.
    assert [window.first for window in with_context] == [0, 3]
    assert [window.context_ids for window in without] == [None]


# --- cache ------------------------------------------------------------------------------------


def folders(path: Path) -> dict[str, int]:
    return {f.name: f.stat().st_mtime_ns for f in (path / "cache").rglob("*")}


def test_the_second_time_the_cache_is_read(build, tmp_path: Path, monkeypatch) -> None:
    examples = [Example(text="the abbot", label="go")]
    first = build(examples)
    before = folders(tmp_path)

    def fail(*_: Any) -> None:
        raise AssertionError("tokenized again")

    monkeypatch.setattr(tables, "_rows", fail)
    second = build(examples)
    assert folders(tmp_path) == before
    assert second.read([0])[0]["text_ids"].tolist() == first.read([0])[0]["text_ids"].tolist()


@pytest.mark.parametrize("change", ["text", "label", "context", "answer", "spec", "tokenizer"])
def test_whatever_changes_the_rows_has_its_own_cache(
    build, tmp_path: Path, word_tokenizer: TextTokenizer, change: str
) -> None:
    answer = Answer(text="An", start=0)
    example = Example(text="the", label="go", context=CONTEXT, answers=(answer,))
    build([example])
    spec, tokenizer = INTENT, word_tokenizer
    if change == "spec":
        spec = replace(INTENT, labels=("go", "pay", "ask"))
    elif change == "tokenizer":
        text = word_tokenizer.to_json().replace('"lowercase":true', '"lowercase":false')
        assert text != word_tokenizer.to_json()
        tokenizer = TextTokenizer.from_json(text)
    else:
        example = replace(example, **{
            "text": {"text": "The"}, "label": {"label": "pay"}, "context": {"context": "An a"},
            "answer": {"answers": (Answer(text="abbot", start=3),)},
        }[change])
    build([example], spec, tokenizer)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_cache_appears_whole_or_not_at_all(build, tmp_path: Path, monkeypatch) -> None:
    import datasets

    def stop(self: Any, path: str) -> None:
        Path(path).mkdir()
        raise KeyboardInterrupt

    examples = [Example(text="the", label="go")]
    with monkeypatch.context() as patch:
        patch.setattr(datasets.Dataset, "save_to_disk", stop)
        with pytest.raises(KeyboardInterrupt):
            build(examples)
    assert all(f.name.endswith(".partial") for f in (tmp_path / "cache").iterdir())


def test_another_process_may_be_first(build, tmp_path: Path, monkeypatch) -> None:
    import datasets

    save = datasets.Dataset.save_to_disk

    def save_twice(self: Any, path: str) -> None:
        save(self, path)
        save(self, path.rsplit(".", 2)[0])  # FOLDER.PROCESS.partial

    monkeypatch.setattr(datasets.Dataset, "save_to_disk", save_twice)
    table = build([Example(text="the", label="go")])
    assert len(table) == 1
    assert [f.suffix for f in (tmp_path / "cache").iterdir()] == [""]


# --- items ------------------------------------------------------------------------------------


def test_training_items_by_hand(build, monkeypatch) -> None:
    # Noise of one token more, to tell it from the text.
    monkeypatch.setattr(tables, "add_noise", lambda text: text + " the")
    table = build([question("abbot"), question(text="the " * 20), Example(text="the " * 20)], QA)
    items = training_items(table, max_length=16, stride=2)
    columns = zip(items.row, items.first, items.text, items.noised, items.context, strict=True)
    assert [tuple(map(int, column)) for column in columns] == [
        # Text of 3, room for 16 - 3 - 3 = 10 of 13 context tokens, none left for noise.
        (0, 0, 3, 3, 10), (0, 3, 3, 3, 10),
        # A text of 20 is cut to 13 // 2 = 6; 7 are left for the context, steps of 7 - 2.
        (1, 0, 6, 6, 7), (1, 5, 6, 6, 7), (1, 6, 6, 6, 7),
        # Without a context the text has 16 - 2.
        (2, 0, 14, 14, 0),
    ]
    assert len(items) == 6
    roomy = training_items(table, max_length=64, stride=2)
    assert roomy.text.tolist() == [3, 20, 20]
    assert roomy.noised.tolist() == [4, 21, 21]


@pytest.mark.parametrize("max_length", [16, 20, 30, 64])
def test_training_items_are_the_windows(build, max_length: int) -> None:
    examples = [question("abbot", text="the " * n, context="the abbot " * m)
                for n in (1, 6, 30) for m in (1, 5, 40)]
    table = build(examples, QA)
    items = training_items(table, max_length=max_length, stride=5)
    expected = [
        (row, window.first, len(window.text_ids), len(window.context_ids))
        for row, record in enumerate(table.read(range(len(table))))
        for window in make_windows(record["text_ids"], record["context_ids"],
                                   max_length=max_length, stride=5)
    ]
    columns = zip(items.row, items.first, items.text, items.context, strict=True)
    assert [tuple(map(int, column)) for column in columns] == expected
    assert (items.noised + items.context + 3 <= max_length).all()
    assert np.issubdtype(items.noised.dtype, np.integer)


def test_what_a_killed_process_left_goes_after_an_hour(build, tmp_path: Path) -> None:
    old, new = tmp_path / "cache" / "a.1.partial", tmp_path / "cache" / "b.2.partial"
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (time.time() - 3700,) * 2)
    build([Example(text="t", label="go")])
    assert not old.exists() and new.exists()


# --- known mistakes ---------------------------------------------------------------------------


def test_a_missing_context_is_none(build) -> None:
    assert build([Example(text="t", label="go")]).read([0])[0]["context"] is None
