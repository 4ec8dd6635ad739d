"""What cleaning drops, keeps and splits off, on rows written by hand."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from moe.data.cleaning import (
    CleaningReport,
    clean,
    drop_contradictions,
    drop_duplicates,
    drop_overlap,
    split_off,
)
from moe.data.formats import Answer, Example
from moe.types import InputError


def row(text: str, label: str | None = None, context: str | None = None,
        answer: str | None = None) -> Example:
    answers = () if answer is None else (Answer(text=answer, start=0),)
    return Example(text=text, label=label, context=context, answers=answers)


@pytest.mark.parametrize(("second", "dropped"), [
    (row("good", "x"), 1), (row("GOOD", "x"), 1), (row("good", "y"), 0), (row("good!", "x"), 0),
    (row("good", "x", "there"), 0), (row("good", "x", None, "a"), 0),
])
def test_drop_duplicates(second: Example, dropped: int) -> None:
    first = row("Good", "x")
    expected = [first] if dropped else [first, second]
    assert drop_duplicates([first, second]) == (expected, dropped)


@pytest.mark.parametrize(("second", "dropped"), [
    (row("GOOD", "y"), 1), (row("good", "x", None, "a"), 1), (row("bad", "y"), 0),
    (row("good", "y", "there"), 0),
])
def test_drop_contradictions(second: Example, dropped: int) -> None:
    first = row("good", "x")
    expected = [first] if dropped else [first, second]
    assert drop_contradictions([first, second]) == (expected, dropped)


def test_drop_overlap() -> None:
    train = [row("a", "x", "p"), row("B", "x", "p"), row("c", "x", "q")]
    assert drop_overlap(train, [row("b", "y", "q")], "text") == ([train[0], train[2]], 1)
    assert drop_overlap(train, [row("z", "y", "p")], "context") == ([train[2]], 2)


@pytest.mark.parametrize("by", ["text", "context"])
def test_split_off_keeps_groups_together(by: str) -> None:
    # 20 groups of two rows; a tenth is 2 groups, 4 rows.
    if by == "text":
        rows = [row(f"{case} {i}", label) for i in range(20)
                for case, label in (("a", "x"), ("A", "y"))]
    else:
        rows = [row(f"{q} {i}", context=f"p {i}") for i in range(20) for q in "ab"]
    train, validation = split_off(rows, seed=3, by=by)
    assert (len(train), len(validation)) == (36, 4)
    assert drop_overlap(train, validation, by) == (train, 0)
    assert train + validation == sorted(train, key=rows.index) + sorted(validation, key=rows.index)
    assert sorted(train + validation, key=rows.index) == rows


@pytest.mark.parametrize(("share", "expected"), [(0.01, 1), (0.1, 1), (0.5, 5), (0.99, 9)])
def test_split_off_leaves_rows_on_both_sides(share: float, expected: int) -> None:
    rows = [row(f"t {i}") for i in range(10)]
    assert len(split_off(rows, share=share, seed=0, by="text")[1]) == expected


def test_split_off_depends_on_the_seed_alone() -> None:
    rows = [row(f"t {i}") for i in range(50)]
    chosen = [set(split_off(rows, seed=seed, by="text")[1]) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert set(split_off(rows[::-1], seed=0, by="text")[1]) == chosen[0]


def test_split_off_is_the_same_in_another_process() -> None:
    script = ("from moe.data.cleaning import split_off, Example\n"
              "rows = [Example(text=f't {i}') for i in range(50)]\n"
              "print(*[row.text for row in split_off(rows, seed=0, by='text')[1]], sep=',')")
    rows = [row(f"t {i}") for i in range(50)]
    expected = ",".join(example.text for example in split_off(rows, seed=0, by="text")[1])
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    printed = subprocess.run([sys.executable, "-c", script], env=environment, check=True,
                             capture_output=True, text=True).stdout
    assert printed.strip() == expected


@pytest.mark.parametrize("seed", range(5))
def test_split_off_leaves_every_label_in_training(seed: int) -> None:
    rows = [row("t 0", "rare")] + [row(f"t {i}", "common") for i in range(1, 5)]
    train, validation = split_off(rows, share=0.9, seed=seed, by="text")
    assert {r.label for r in train} == {"rare", "common"}
    assert len(validation) == 3
    # Where every label is rare, one of them has to go.
    assert len(split_off([row("a", "x"), row("b", "y")], seed=seed, by="text")[1]) == 1


@pytest.mark.parametrize("rows", [[], [row("a", "x"), row("A", "y")]])
def test_split_off_needs_two_groups(rows: list[Example]) -> None:
    with pytest.raises(InputError, match=rf"got {len(rows)} rows with {min(len(rows), 1)} diff"):
        split_off(rows, seed=0, by="text")


def test_clean_with_validation() -> None:
    train = [row("a", "x"), row("A", "x"), row("a", "y"), row("b", "x"), row("c", "y")]
    validation = [row("B", "y"), row("B", "y")]  # a published set keeps its copies
    kept, held_out, report = clean(train, validation, by="text", seed=0)
    assert kept == [train[0], train[4]]
    assert held_out == validation
    assert report == CleaningReport(kept_train=2, kept_validation=2, duplicates=1,
                                    contradictions=1, overlap=1)
    assert str(report) == ("2 training and 2 validation rows; dropped 1 duplicates, "
                           "1 contradictions, 1 that validation holds")


@pytest.mark.parametrize(("by", "kept"), [("context", ["c"]), ("text", ["b", "c"])])
def test_clean_compares_by_type(by: str, kept: list[str]) -> None:
    train = [row("a", context="one"), row("b", context="one"), row("c", context="two")]
    rows, _, report = clean(train, [row("A", context="one")], by=by, seed=0)
    assert [example.text for example in rows] == kept
    assert (report.kept_train, report.overlap) == (len(kept), 3 - len(kept))


@pytest.mark.parametrize(("by", "expected"), [("context", (2, 2)), ("text", (3, 1))])
def test_clean_without_validation_groups_by_type(by: str, expected: tuple[int, int]) -> None:
    # Four questions on two contexts: a tenth is one context, or one question.
    rows = [row(f"{q} {p}", context=p, answer=p[0]) for p in ("one", "two") for q in "ab"]
    train, validation, report = clean([*rows, rows[0]], None, by=by, seed=0)
    assert (len(train), len(validation)) == expected == (report.kept_train, report.kept_validation)
    assert (report.duplicates, report.overlap) == (1, 0)


def test_clean_uses_share_and_seed() -> None:
    rows = [row(f"t {i}", "x") for i in range(40)]
    parts = [clean(rows, None, by="text", seed=seed, share=share)[1]
             for seed, share in ((0, 0.1), (1, 0.1), (0, 0.5))]
    assert [len(part) for part in parts] == [4, 4, 20]
    assert parts[0] != parts[1]


def test_clean_that_leaves_nothing() -> None:
    with pytest.raises(InputError, match="got 1, of which validation holds the text of 1"):
        clean([row("a", "x")], [row("a", "x")], by="text", seed=0)


def test_clean_leaves_short_rows_out_of_training_alone() -> None:
    train = [row("so it goes on", "x"), row("a film", "x"), row("no", "y"), row("B C", "x")]
    validation = [row("b c", "x"), row("oh", "y")]
    kept, held_out, report = clean(train, validation, by="text", seed=0, min_words=2)
    assert kept == train[:2]
    assert held_out == validation
    assert (report.kept_train, report.overlap, report.short) == (2, 1, 1)
    assert str(report).endswith("1 that validation holds, 1 with too few words")


def test_clean_splits_validation_off_before_short_rows_go() -> None:
    rows = [row("word " * n, "x") for n in range(1, 21)]
    whole = clean(rows, None, by="text", seed=0)[1]
    kept, held_out, report = clean(rows, None, by="text", seed=0, min_words=11)
    assert held_out == whole
    assert kept == [r for r in rows[10:] if r not in held_out]
    assert report.short == 20 - len(held_out) - len(kept)


def test_clean_that_leaves_no_long_row() -> None:
    with pytest.raises(InputError, match="min_words 3: none of 1 training rows has so many"):
        clean([row("a b", "x")], [row("c", "x")], by="text", seed=0, min_words=3)
