"""Routing rows on their way from a config to tables: which are read, trained on, compared with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe.config import DataConfig, TaskConfig
from moe.data import prepare
from moe.data.formats import Example
from moe.data.prepare import Tables, build_tables
from moe.data.tables import build_table
from moe.data.windows import TextTokenizer
from moe.types import InputError, TaskSpec

TASKS = {
    "mood": TaskConfig(type="classifier", train="mood.csv", validation="mood.val.csv"),
    "intent": TaskConfig(type="classifier", train="intent.csv", validation="intent.val.csv"),
}
# Of the texts abbot and film are held out (test_routing.py), good and the are not.
ROWS = [
    {"text": "good", "tasks": ["intent", "mood"]}, {"text": "the", "tasks": ["mood"]},
    {"text": "abbot", "tasks": ["mood"]}, {"text": "film", "tasks": ["mood", "qa"]},
]
STRANGER = {"text": "two", "tasks": []}


@pytest.fixture
def build(tmp_path: Path, word_tokenizer: TextTokenizer) -> Any:
    """Builds the tables of both tasks, six training rows of one to six tokens each."""

    def build(
        *rows: dict, tasks: dict[str, TaskConfig] = TASKS, seed: int = 0, **data: Any
    ) -> tuple[Tables, list[str]]:
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        for name, labels in (("mood", ("up", "down")), ("intent", ("go", "stay"))):
            for suffix, word in (("csv", "very"), ("val.csv", "monks")):
                lines = [f"{' '.join([word] * i)},{labels[i % 2]}" for i in range(1, 7)]
                text = "\n".join(["text,label", *lines])
                (tmp_path / f"{name}.{suffix}").write_text(text + "\n")
        config = DataConfig(root=str(tmp_path), cache=str(tmp_path / "cache"),
                            **{"routing": "rows.jsonl", **data})
        return build_tables(tasks, config, word_tokenizer, seed)

    return build


def test_routing_rows_become_two_tables(build) -> None:
    tables, lines = build(*ROWS, STRANGER)
    train, held = tables.routing_train, tables.routing_validation
    assert train is not None and held is not None
    assert [row.text for row in train.rows] == ["good", "the"]
    assert [row.text for row in held.rows] == ["abbot", "two"]  # film needs a task that is not here
    assert [r["targets"] for r in train.read([0, 1])] == [(1, 0), (0,)]
    assert lines[-1].endswith("2 rows to train on, 0 of them with answers, 2 to fit thresholds on")
    assert len(lines) == 3


@pytest.mark.parametrize(("texts", "present"), [
    (["good"], (True, False)), (["abbot"], (False, True)), (["two"], (False, True)),
])
def test_a_part_without_rows_has_no_table(build, texts: list, present: tuple[bool, bool]) -> None:
    rows = [row for row in (*ROWS, STRANGER) if row["text"] in texts]
    tables, _ = build(*rows)
    assert (tables.routing_train is not None, tables.routing_validation is not None) == present


def test_without_routing_rows(build) -> None:
    tables, lines = build(routing=None)
    assert (tables.routing_train, tables.routing_validation, tables.exemplars) == (None, None, {})
    assert len(lines) == 2


def test_a_task_has_its_own_fewest_words(build) -> None:
    tasks = {**TASKS, "mood": replace(TASKS["mood"], min_words=5)}
    tables, lines = build(routing=None, tasks=tasks)
    assert [len(table) for table in tables.train] == [2, 6]
    assert [len(table) for table in tables.validation] == [6, 6]
    assert "4 with too few words" in lines[0]
    assert "too few words" not in lines[1]


def test_a_task_without_a_long_row_is_named(build) -> None:
    with pytest.raises(InputError, match="task mood: min_words 7: none of 6 training rows"):
        build(routing=None, tasks={"mood": replace(TASKS["mood"], min_words=7)})


def test_one_task_leaves_nothing_to_route(build) -> None:
    tables, lines = build(*ROWS, STRANGER, tasks={"mood": TASKS["mood"]})
    assert (tables.routing_train, tables.routing_validation, tables.exemplars) == (None, None, {})
    assert lines[1:] == ["routing: not read, a single task leaves nothing to route"]


def test_a_mistake_names_the_setting(build) -> None:
    with pytest.raises(InputError, match=r"data\.routing: .*rows\.jsonl, line 2, tasks: got 'x'"):
        build(ROWS[0], {"text": "t", "tasks": "x"})
    with pytest.raises(InputError, match=r"data\.routing: .*none\.jsonl: no such file"):
        build(routing="none.jsonl")


# --- exemplars --------------------------------------------------------------------------------


def test_exemplars_are_training_rows_where_a_text_fits_no_task(build) -> None:
    tables, _ = build(*ROWS, STRANGER)
    assert list(tables.exemplars) == ["mood", "intent", "routing rows"]
    assert tables.exemplars["routing rows"] is tables.routing_train
    for train in tables.train:
        table = tables.exemplars[train.spec.name]
        assert sorted(r["text"] for r in table.read(range(6))) == sorted(
            r["text"] for r in train.read(range(6)))
        assert table.task == train.task
    assert build(*ROWS)[0].exemplars == {}  # nothing to compare them with


def test_a_passage_counts_too(
    tmp_path: Path, word_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "EXEMPLAR_TOKENS", 35)
    spec = TaskSpec(name="qa", type="span", num_experts=1)
    rows = [Example(text="who", context="very " * 8 + "good") for _ in range(8)]
    table = build_table(rows, spec, 0, word_tokenizer, tmp_path / "cache")
    # 1 + 9 tokens a row: 30 are below 35, 40 are not.
    assert len(prepare.some_rows(table, seed=0)) == 3


@pytest.mark.parametrize(("limits", "low", "high"), [
    ({"MAX_EXEMPLARS": 4}, 4, 4),
    # Rows have 1 to 6 tokens: fewer than 12 are at least two rows and at most four, 1 + 2 + 3 + 4.
    ({"EXEMPLAR_TOKENS": 12}, 2, 4),
    ({"EXEMPLAR_TOKENS": 1}, 1, 1),  # never none
])
def test_exemplars_are_limited(
    build, monkeypatch: pytest.MonkeyPatch, limits: dict, low: int, high: int
) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(prepare, name, value)
    chosen = set()
    for seed in range(5):
        table = build(STRANGER, seed=seed)[0].exemplars["mood"]
        assert low <= len(table) <= high
        tokens = table.lengths("text_ids")  # of the chosen rows, not of the first of the table
        assert tokens.tolist() == [len(r["text_ids"]) for r in table.read(range(len(table)))]
        assert len(table) == 1 or tokens.sum() <= limits.get("EXEMPLAR_TOKENS", 99)
        chosen.add(tuple(tokens.tolist()))
        again = build(STRANGER, seed=seed)[0].exemplars["mood"]
        assert again.lengths("text_ids").tolist() == tokens.tolist()
    assert len(chosen) > 1  # a random part, by the seed
