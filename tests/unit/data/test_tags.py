"""BIO tags: the spans that they mark, the files that hold them, and what a table keeps of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe.data import tags as tags_module
from moe.data.formats import Columns, Example
from moe.data.sources import read_source
from moe.data.tables import build_table
from moe.data.tags import tag_columns, tag_spans
from moe.data.windows import TextTokenizer
from moe.types import InputError, TaskSpec

SLOTS = TaskSpec(name="slots", type="tagger", num_experts=1,
                 labels=("O", "B-city", "I-city", "B-time", "I-time"))


# --- spans ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tags", "expected"), [
    ("O O", []),
    ("O B-city I-city O B-time", [("city", 1, 2), ("time", 4, 4)]),
    ("B-city B-city", [("city", 0, 0), ("city", 1, 1)]),
    # As conlleval: an I- without an open span of its type begins one.
    ("I-city I-city O I-city", [("city", 0, 1), ("city", 3, 3)]),
    ("B-city I-time", [("city", 0, 0), ("time", 1, 1)]),
    ("B-city I-time I-city", [("city", 0, 0), ("time", 1, 1), ("city", 2, 2)]),
    ("B-a-b I-a-b", [("a-b", 0, 1)]),
])
def test_spans(tags: str, expected: list[tuple[str, int, int]]) -> None:
    assert tag_spans(tags.split()) == expected


# --- files ------------------------------------------------------------------------------------


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Writes a file and reads it as a tagger's rows."""

    def read(name: str, content: str, **columns: str) -> list[Example]:
        (tmp_path / name).write_text(content, encoding="utf-8")
        return read_source(name, root=tmp_path, split="train", type="tagger",
                           columns=Columns(**columns))

    return read


ROW = {"tokens": ["to", "New", "York"], "tags": ["O", "B-city", "I-city"]}
EXAMPLE = Example(text="to New York", tags=("O", "B-city", "I-city"))


def test_json_lines(read: Any) -> None:
    assert read("a.jsonl", json.dumps(ROW)) == [EXAMPLE]
    named = {"w": ROW["tokens"], "t": ROW["tags"], "tokens": "no list"}
    assert read("a.jsonl", json.dumps(named), text="w", label="t") == [EXAMPLE]


def test_conll(read: Any) -> None:
    content = ("-DOCSTART- -X- O O\n\nto TO O\r\nNew NNP B-city\nYork NNP I-city\n\n \n"
               "a\u00e9\tO\n\n\n")
    assert read("a.conll", content) == [EXAMPLE, Example(text="a\u00e9", tags=("O",))]


def test_parquet_with_the_names_of_class_numbers(read: Any, tmp_path: Path) -> None:
    import datasets

    names = datasets.ClassLabel(names=["O", "B-city", "I-city"])
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")),
                                  "ner_tags": datasets.List(names)})
    rows = datasets.Dataset.from_dict({"tokens": [ROW["tokens"]], "ner_tags": [[0, 1, 2]]},
                                      features=features)
    rows.to_parquet(str(tmp_path / "a.parquet"))
    source = {"root": tmp_path, "split": "train", "type": "tagger"}
    assert read_source("a.parquet", **source) == [EXAMPLE]
    folder = tmp_path / "hub"
    folder.mkdir()
    (tmp_path / "a.parquet").rename(folder / "train.parquet")
    assert read_source("hub:hub", **source) == [EXAMPLE]


@pytest.mark.parametrize(("change", "message"), [
    ({"tags": ["O"]}, r"a.jsonl, line 1, tags: got \['O'\], expected 3 tags, one per word, got 1"),
    ({"tags": ["O", "city", "O"]}, r"tags: got 'city', expected a BIO tag such as 'O', 'B-city'"),
    ({"tags": [0, 1, 2]}, r"tags: got 0, expected a BIO tag"),
    ({"tags": None}, r"line 1, tags: got None, expected a list that is not empty"),
    ({"tokens": []}, r"line 1, tokens: got \[\], expected a list that is not empty"),
    ({"tokens": "to New York"}, r"tokens: got 'to New York', expected a list"),
    ({"tokens": ["to", "New York", "x"]}, r"word: got 'New York', expected a string without"),
    ({"tokens": ["to", "\u0085", "x"]}, r"word: got '\\x85', expected a string without blanks"),
    ({"tokens": ["to", 7, "x"]}, r"word: got 7, expected a string"),
])
def test_a_bad_row_is_named(read: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read("a.jsonl", json.dumps({**ROW, **change}))


def test_other_files_are_refused(read: Any) -> None:
    with pytest.raises(InputError, match=r"a.conll, line 2: got 'York', expected a word and a tag"):
        read("a.conll", "to O\nYork\n")
    with pytest.raises(InputError, match=r"a.json: got '.json', expected a '.conll', '.jsonl'"):
        read("a.json", "{}")
    with pytest.raises(InputError, match=r"no column 'tokens' or 'words' for the words; the col"):
        read("a.csv", "text,label\na,b\n")
    with pytest.raises(InputError, match=r"a.conll: no rows, expected at least one"):
        read("a.conll", "-DOCSTART- O\n\n")


# --- what a table keeps -----------------------------------------------------------------------


def test_the_class_of_a_word_stands_at_its_first_token(word_tokenizer: TextTokenizer) -> None:
    # "the", "an", "led" are whole tokens, "ok" is o ##k, and the tokenizer parts U.S. into four.
    example = Example(text="the ok led U.S. an", tags=("O", "B-time", "I-time", "B-city", "O"))
    columns = tag_columns(example, SLOTS, word_tokenizer)
    # the o ##k led u . s . an: only the first piece of U.S. begins a span, the rest goes on.
    assert columns["tags"].tolist() == [0, 3, -1, 4, 1, 2, 2, 2, 0]
    words = columns["word_offsets"].reshape(-1, 2).tolist()
    assert [example.text[a:b] for a, b in words] == ["the", "ok", "led", "U", ".", "S", ".", "an"]


def test_a_blank_before_a_comma_changes_nothing(word_tokenizer: TextTokenizer) -> None:
    apart, together = "the film , an", "the film, an"
    ids = [ids.tolist() for ids, _ in word_tokenizer.encode([apart, together])]
    assert ids[0] == ids[1]
    first, second = word_tokenizer.words(apart), word_tokenizer.words(together)
    assert first.starts_W.tolist() == second.starts_W.tolist() == [0, 1, 2, 3]
    assert second.offsets_W2.tolist() == [[0, 3], [4, 8], [8, 9], [10, 12]]


def test_no_words(word_tokenizer: TextTokenizer) -> None:
    assert len(word_tokenizer.words("")) == 0


def test_tags_of_the_old_scheme_become_bio(word_tokenizer: TextTokenizer) -> None:
    example = Example(text="an abbot led", tags=("I-city", "I-city", "B-city"))
    assert tag_columns(example, SLOTS, word_tokenizer)["tags"].tolist() == [1, 2, 1]


@pytest.mark.parametrize(("noised", "expected"), [
    ("THE OKI LED", [0, 1, -1, -1, 2]),   # a letter more: o ##k ##i
    ("the ok led!", None),                # a word more
    ("the , led", None),                  # as many words, but the comma is where a word was
])
def test_noise_keeps_the_words(
    word_tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch, noised: str, expected: Any
) -> None:
    monkeypatch.setattr(tags_module, "add_noise", lambda text: noised)
    example = Example(text="the ok led", tags=("O", "B-city", "I-city"))
    columns = tag_columns(example, SLOTS, word_tokenizer)
    plain, _ = word_tokenizer.encode(["the ok led"])[0]
    if expected is None:
        assert columns["noised_ids"].tolist() == plain.tolist()
        expected = columns["tags"].tolist()
    assert columns["noised_tags"].tolist() == expected


def test_every_noise_keeps_as_many_tags_as_tokens(word_tokenizer: TextTokenizer) -> None:
    words = ["the", "very", "good", "film", ",", "led", "by", "an", "abbot", "."]
    for cut in range(1, len(words) + 1):
        example = Example(text=" ".join(words[:cut]), tags=("B-city",) * cut)
        columns = tag_columns(example, SLOTS, word_tokenizer)
        assert len(columns["noised_tags"]) == len(columns["noised_ids"])
        assert (columns["noised_tags"] >= 0).sum() == (columns["tags"] >= 0).sum()


def test_a_type_that_training_lacks_is_named(word_tokenizer: TextTokenizer) -> None:
    with pytest.raises(InputError, match=r"task slots: tag 'B-date' of 'today' is of none of the "
                                         r"types \['city', 'time'\].*tasks\.slots\.labels"):
        tag_columns(Example(text="today", tags=("B-date",)), SLOTS, word_tokenizer)


def test_a_table_of_tags(word_tokenizer: TextTokenizer, tmp_path: Path) -> None:
    examples = [Example(text="ok the", tags=("B-city", "O")), Example(text="an", tags=("O",))]
    table = build_table(examples, SLOTS, 2, word_tokenizer, tmp_path)
    assert table.labels().tolist() == [-1, -1]
    assert [list(row) for row in table.rows["tags"][:]] == [[1, -1, 0], [0]]
    row = table.read([0])[0]
    assert row["span"].tolist() == [-1, -1] and row["context"] is None
    assert np.array_equal(row["word_offsets"], [0, 2, 3, 6])
    again = build_table(examples, SLOTS, 2, word_tokenizer, tmp_path)  # from the cache
    assert [list(row) for row in again.rows["noised_tags"][:]] == [
        list(row) for row in table.rows["noised_tags"][:]]
    others = build_table([Example(text="ok the", tags=("O", "O"))], SLOTS, 2, word_tokenizer,
                         tmp_path)
    assert list(others.rows["tags"][:][0]) == [0, -1, 0]  # tags are a part of the cache's name
