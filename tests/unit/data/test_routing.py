"""Routing rows: what a file may say, which rows are held out, and how they are read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe.data import routing
from moe.data.augment import add_noise
from moe.data.routing import RoutingRow, RoutingTable, hold_out, read_routing_rows
from moe.data.tables import training_items
from moe.data.windows import TextTokenizer
from moe.types import InputError, TaskSpec

TASKS = ("sentiment", "qa", "intent")
CONTEXT = "An abbot led  the monks."


def write(folder: Path, *lines: Any, name: str = "rows.jsonl") -> str:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / name).write_text("\n".join(texts), encoding="utf-8")
    return name


def read(folder: Path, *lines: Any, tasks: tuple[str, ...] = TASKS) -> list[RoutingRow]:
    return read_routing_rows(write(folder, *lines), root=folder, split="train", tasks=tasks)


# --- files ------------------------------------------------------------------------------------


def test_rows_of_a_file(tmp_path: Path) -> None:
    rows = read(
        tmp_path,
        {"text": " Who\tled? ", "context": CONTEXT, "tasks": ["qa"], "category": "question"},
        "",
        {"text": "very good, so who led?", "context": CONTEXT,
         "tasks": ["sentiment", "qa", "sentiment"]},
        {"text": "news of the day", "tasks": [], "category": None},
    )
    assert rows == [
        # The text is normalised; the context stays as it is, so that offsets fit.
        RoutingRow(text="Who led?", context=CONTEXT, tasks=("qa",), category="question"),
        RoutingRow(text="very good, so who led?", context=CONTEXT, tasks=("sentiment", "qa")),
        RoutingRow(text="news of the day", context=None, tasks=()),
    ]


def test_answers_of_a_file(tmp_path: Path) -> None:
    both = {"text": "so who led? good!", "context": CONTEXT, "tasks": ["sentiment", "qa"]}
    rows = read(tmp_path, {**both, "sentiment": "good", "answer": "abbot", "intent": "ask"},
                {**both, "sentiment": None, "answer": None})
    # A label of a task that the row is not for says nothing.
    assert [row.answers for row in rows] == [{"sentiment": "good", "answer": "abbot"}, {}]


def test_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    row, = read(tmp_path, {"text": "a\ud800b", "context": "c\udfff", "tasks": ["qa"]})
    assert (row.text, row.context) == ("a\ufffdb", "c\ufffd")


def test_a_model_with_fewer_tasks_leaves_out_rows_for_others(tmp_path: Path) -> None:
    lines = [
        {"text": "a", "tasks": ["sentiment"]},
        {"text": "b", "tasks": ["qa"]},
        {"text": "c", "tasks": ["sentiment", "qa"]},  # half of it could be said, all or nothing is
        {"text": "d", "tasks": []},
        {"text": "e", "tasks": ["intent", "sentiment"]},
    ]
    kept = [row.text for row in read(tmp_path, *lines, tasks=("intent", "sentiment"))]
    assert kept == ["a", "d", "e"]
    assert [row.text for row in read(tmp_path, *lines)] == ["a", "b", "c", "d", "e"]


ERRORS = [
    ({"tasks": ["qa"]}, "text: got None, expected a string that is not empty"),
    ({"text": 7, "tasks": ["qa"]}, "text: got 7, expected a string that is not empty"),
    ({"text": " \t", "tasks": []}, "text: got ' \\t', expected a string that is not empty"),
    ({"text": "t", "context": 3, "tasks": []}, "context: got 3, expected a passage or null"),
    ({"text": "t", "context": " ", "tasks": []}, "context: got ' ', expected a passage or null"),
    ({"text": "t"}, "tasks: got None, expected a list of task names, empty where none fits"),
    ({"text": "t", "tasks": "qa"}, "tasks: got 'qa', expected a list of task names"),
    ({"text": "t", "tasks": ["qa", 1]}, "tasks: got ['qa', 1], expected a list of task names"),
    ({"text": "t", "tasks": ["qa"], "qa": 3}, "qa: got 3, expected a string, or null where"),
    ({"text": "t", "context": "c", "tasks": ["qa"], "answer": "d"},
     "answer: got 'd', expected a piece of the context, word for word"),
    ({"text": "t", "tasks": ["qa"], "answer": "d"}, "answer: got 'd', expected a piece of the"),
    (["t"], "got ['t'], expected a JSON object"),
    ("{", "got '{', expected JSON"),
]


@pytest.mark.parametrize(("line", "message"), ERRORS)
def test_a_wrong_row_is_named(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(InputError) as raised:
        read(tmp_path, {"text": "right", "tasks": ["qa"]}, "", line)
    separator = ": " if message.startswith("got") else ", "  # of the line itself, or of a field
    assert f"{tmp_path / 'rows.jsonl'}, line 3{separator}{message}" in str(raised.value)


def test_a_wrong_row_is_named_even_if_it_would_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 1, context: got 5"):
        read(tmp_path, {"text": "t", "context": 5, "tasks": ["qa"]}, tasks=("intent",))


def test_a_file_without_rows_for_the_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rows.jsonl: no row for the tasks \['a', 'intent'\]"):
        read(tmp_path, {"text": "t", "tasks": ["qa"]}, tasks=("intent", "a"))
    with pytest.raises(InputError, match="no row for the tasks"):
        read(tmp_path, "")


@pytest.mark.parametrize(("source", "message"), [
    ("rows.csv", r"rows.csv: got the suffix '.csv', expected '.jsonl'"),
    ("sample:qa", r"qa.train.json: got the suffix '.json', expected '.jsonl'"),
    ("sample:topics", r"sample:topics: no such sample.*'routing'"),
    ("none.jsonl", r"none.jsonl: no such file"),
])
def test_a_source_that_holds_no_json_lines(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "rows.csv").write_text("text\n")
    with pytest.raises(InputError, match=message):
        read_routing_rows(source, root=tmp_path, split="train", tasks=TASKS)


def test_the_sample() -> None:
    here = {"root": Path("nowhere"), "tasks": TASKS}
    train, test = (read_routing_rows("sample:routing", split=s, **here) for s in ("train", "test"))
    with pytest.raises(InputError, match=r"sample:routing has no split 'validation'"):
        read_routing_rows("sample:routing", split="validation", **here)
    assert not {row.text for row in train} & {row.text for row in test}
    for rows in (train, test):
        assert {name for row in rows for name in row.tasks} == set(TASKS)
        assert any(len(row.tasks) == 2 for row in rows) and any(not row.tasks for row in rows)
        # No expert answers a question without a passage: such a row would teach what cannot be.
        assert all(row.context is not None for row in rows if "qa" in row.tasks)
    seen, unseen = hold_out(train)
    assert len(seen) > 300 and sum(len(row.tasks) == 2 for row in unseen) > 10


# --- held out ---------------------------------------------------------------------------------


def row(text: str, *tasks: str, context: str | None = None) -> RoutingRow:
    return RoutingRow(text=text, context=context, tasks=tasks)


def test_hold_out_by_hand() -> None:
    # The first bytes of the SHA-256 are film d0, abbot 40, good 77, the b9, two 3f: the first two
    # are divisible by 4. A row without a task is held out whatever its text.
    rows = [row("film", "qa"), row("good", "qa"), row("abbot", "intent", "qa"), row("the", "qa"),
            row("two")]
    train, held = hold_out(rows)
    assert [r.text for r in train] == ["good", "the"]
    assert [r.text for r in held] == ["film", "abbot", "two"]
    assert hold_out([]) == ([], [])


def test_which_rows_are_held_out_depends_on_the_text_alone() -> None:
    rows = [row(f"text {i}", "qa") for i in range(400)]
    train, held = hold_out(rows)
    assert 65 <= len(held) <= 135  # a quarter of 400 and four standard deviations of 8.7
    others = [replace(r, tasks=("intent", "sentiment"), context="c", category="x") for r in rows]
    train_again, held_again = hold_out(others[::-1])
    assert {r.text for r in held_again} == {r.text for r in held}
    assert len(train) + len(held) == 400 == len(train_again) + len(held_again)


# --- tokens -----------------------------------------------------------------------------------


@pytest.fixture
def table(word_tokenizer: TextTokenizer) -> RoutingTable:
    rows = [row("the abbot led", "intent"), row("who led", "qa", "sentiment", context=CONTEXT),
            row("good good good good")]
    return RoutingTable(rows, TASKS, word_tokenizer)


def test_records_of_a_table(table: RoutingTable, word_tokenizer: TextTokenizer) -> None:
    stranger, both = table.read([2, 1])
    assert [r["targets"] for r in table.read([0, 1, 2])] == [(2,), (1, 0), ()]
    assert (both["context"], stranger["context"]) == (CONTEXT, None)
    for record, text in ((both, "who led"), (stranger, "good good good good")):
        (tokens, _), (noised, _) = word_tokenizer.encode([text, add_noise(text)])
        assert record["text_ids"].tolist() == tokens.tolist()
        assert record["noised_ids"].tolist() == noised.tolist()
        assert (record["label"], record["span"]) == (-1, (-1, -1))  # no answer is known
    (passage, _), = word_tokenizer.encode([CONTEXT])
    assert both["context_ids"].tolist() == passage.tolist()
    assert table.task == -1 and len(table) == 3


SPECS = (
    TaskSpec(name="sentiment", type="classifier", num_experts=1, labels=("bad", "good")),
    TaskSpec(name="qa", type="span", num_experts=1),
    TaskSpec(name="intent", type="classifier", num_experts=1, labels=("pay",), out_of_scope="oos"),
)


@pytest.mark.parametrize(("tasks", "answers", "expected"), [
    (("qa", "sentiment"), {"sentiment": "good", "answer": "abbot"}, ((0, 1), 1, (1, 1))),
    (("qa", "sentiment"), {"answer": "the monks"}, ((1,), -1, (3, 4))),
    (("qa", "sentiment"), {"sentiment": "splendid"}, ((), -1, (-1, -1))),  # a label of others
    (("sentiment",), {"sentiment": "bad", "answer": "abbot"}, ((0,), 0, (-1, -1))),
    (("intent",), {"intent": "oos"}, ((2,), 1, (-1, -1))),
    (("intent", "sentiment"), {"intent": "pay", "sentiment": "good"}, ((0,), 1, (-1, -1))),
    (("intent",), {}, ((), -1, (-1, -1))),
])
def test_answers_that_experts_learn(
    word_tokenizer: TextTokenizer, tasks: tuple[str, ...], answers: dict[str, str],
    expected: tuple[Any, ...]
) -> None:
    rows = [replace(row("who led", *tasks, context=CONTEXT), answers=answers)]
    table = RoutingTable(rows, TASKS, word_tokenizer, SPECS)
    record, = table.read([0])
    assert (record["answered"], record["label"], record["span"]) == expected
    assert table.num_answered == (len(expected[0]) > 0)
    silent = RoutingTable(rows, TASKS, word_tokenizer).read([0])[0]
    assert (silent["answered"], silent["label"], silent["span"]) == ((), -1, (-1, -1))


def test_lengths(table: RoutingTable) -> None:
    assert table.lengths("text_ids").tolist() == [3, 2, 4]
    assert table.lengths("context_ids").tolist() == [0, 6, 0]  # An abbot led the monks .
    assert table.lengths("noised_ids").dtype == np.int64


def test_the_tasks_are_numbered_as_in_the_model(word_tokenizer: TextTokenizer) -> None:
    rows = [row("the", "intent", "sentiment")]
    first = RoutingTable(rows, ("intent", "qa", "sentiment"), word_tokenizer).read([0])[0]
    other = RoutingTable(rows, ("sentiment", "intent"), word_tokenizer).read([0])[0]
    assert (first["targets"], other["targets"]) == ((0, 2), (1, 0))


def test_windows_and_training_items(
    word_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "add_noise", lambda text: text + " the")
    rows = [row("the abbot", "intent"), row("who led", "qa", context="the abbot led " * 5)]
    table = RoutingTable(rows, TASKS, word_tokenizer)
    short, long = (
        table.windows(record, max_length=16, stride=2) for record in table.read([0, 1])
    )
    assert [window.context_ids for window in short] == [None]
    # 16 - 3 - 2 = 11 of 15 tokens fit: the second window ends with the context.
    assert [window.first for window in long] == [0, 4]
    items = training_items(table, max_length=16, stride=2)
    columns = zip(items.row, items.first, items.text, items.noised, items.context, strict=True)
    # A noised text has one token more, for which a full window has no room.
    assert [tuple(map(int, column)) for column in columns] == [
        (0, 0, 2, 3, 0), (1, 0, 2, 2, 11), (1, 4, 2, 2, 11)]


def test_json_lines_have_no_keys(tmp_path: Path) -> None:
    source = write(tmp_path, {"text": "a", "tasks": ["qa"]})
    with pytest.raises(InputError, match=r"rows\.jsonl: got #train\+test, but JSON lines have no"):
        read_routing_rows(f"{source}#train+test", root=tmp_path, split="train", tasks=TASKS)


def test_a_context_of_control_characters_is_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 1, context: got '\\x00', expected a passage or"):
        read(tmp_path, {"text": "a", "context": "\u0000", "tasks": ["qa"]})
