"""Every kind of SOURCE, and the message for everything that can be wrong with one."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from moe.data.sources import Answer, Columns, Example, read_source, source_files
from moe.data.tags import tag_spans
from moe.data.text import normalise_text, replace_surrogates, shorten
from moe.types import InputError

CONTEXT = "An abbot led  the monks."  # "abbot" at 3, "the monks" at 14


def squad(*questions: dict[str, Any], context: Any = CONTEXT) -> dict[str, Any]:
    return {"data": [{"paragraphs": [{"context": context, "qas": list(questions)}]}]}


def question(text: Any = "Who led?", answer: Any = "abbot", start: Any = 3, **more: Any) -> dict:
    answers = [] if answer is None else [{"text": answer, "answer_start": start}]
    return {"id": "1", "question": text, "answers": answers, **more}


def write(folder: Path, name: str, content: Any) -> str:
    data = content if isinstance(content, bytes | str) else json.dumps(content)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return name


def write_parquet(folder: Path, name: str, rows: list[dict[str, Any]], **features: Any) -> None:
    import datasets

    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_list(rows)
    for column, feature in features.items():
        table = table.cast_column(column, feature)
    table.to_parquet(folder / name)


def pairs(examples: list[Example]) -> list[tuple[str, str | None]]:
    return [(example.text, example.label) for example in examples]


@pytest.fixture
def classifier(tmp_path: Path):
    def read(source: str, split: Any = "train", **columns: str) -> list[Example]:
        return read_source(source, root=tmp_path, split=split, type="classifier",
                           columns=Columns(**columns))
    return read


@pytest.fixture
def span(tmp_path: Path):
    def read(source: str, split: Any = "train", **columns: str) -> list[Example]:
        return read_source(source, root=tmp_path, split=split, type="span",
                           columns=Columns(**columns))
    return read


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(("raw", "expected"), [
    (" a\t b\r\n", "a b"), ("a\x00b\x85c", "a b c"), ("e\u0301", "\u00e9"),
    ("x\ud800y", "x\ufffdy"), ("a\u2028b\u00a0c", "a b c"), ("\x00 \n", ""),
])
def test_normalise_text(raw: str, expected: str) -> None:
    assert normalise_text(raw) == expected


def test_replace_surrogates_keeps_the_length() -> None:
    assert replace_surrogates("\udfffe\u0301 \n\U0001f600") == "\ufffde\u0301 \n\U0001f600"


@pytest.mark.parametrize("value", ["\n" * 200, list(range(99)), "x" * 10_000])
def test_shorten_to_80_characters(value: object) -> None:
    assert len(shorten(value)) == 80


def test_tsv_is_never_quoted(tmp_path: Path, classifier: Any) -> None:
    write(tmp_path, "a.tsv", 'sentence\tlabel\r\n"open\t1\r\nsays "x" \u2028 y\t0\n\n"q" , r\t1')
    assert pairs(classifier("a.tsv")) == [('"open', "1"), ('says "x" y', "0"), ('"q" , r', "1")]


def test_csv_has_quoted_fields_over_lines(tmp_path: Path, classifier: Any) -> None:
    write(tmp_path, "a.csv", '\ufefftext,label\n"a, ""b""\nc",pos\nplain "x",neg\n')
    assert pairs(classifier("a.csv")) == [('a, "b" c', "pos"), ('plain "x"', "neg")]


def test_csv_field_longer_than_the_default_limit(tmp_path: Path, classifier: Any) -> None:
    write(tmp_path, "a.csv", f"text,label\n{'x' * 200_000},1\n")
    assert len(classifier("a.csv")[0].text) == 200_000


@pytest.mark.parametrize(("label", "expected"), [
    (1, "1"), (0, "0"), (1.0, "1"), (0.5, "0.5"), (True, "true"), (False, "false"), (" a ", "a"),
])
def test_labels_are_strings(tmp_path: Path, classifier: Any, label: Any, expected: str) -> None:
    write(tmp_path, "a.jsonl", json.dumps({"text": "x", "label": label}) + "\n\n")
    assert pairs(classifier("a.jsonl")) == [("x", expected)]


def test_parquet(tmp_path: Path, classifier: Any) -> None:
    table = pyarrow.table({"idx": [7, 8], "sentence": ["a", "b"], "label": [1, 0]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert pairs(classifier("a.parquet")) == [("a", "1"), ("b", "0")]


@pytest.mark.parametrize(("header", "columns", "expected"), [
    ("review,label", {}, ("r s", "x y")),
    ("utterance,intent", {}, ("r s", "x y")),
    ("query,category", {}, ("r s", "x y")),
    ("body,class", {}, ("r s", "x y")),
    ("label,body", {}, ("x y", "r s")),
    ("text,title", {"text": "title", "label": "text"}, ("x y", "r s")),
    ("sentence,other", {"label": "other"}, ("r s", "x y")),
])
def test_columns_are_found_or_named(tmp_path: Path, classifier: Any, header: str,
                                    columns: dict[str, str], expected: tuple[str, str]) -> None:
    write(tmp_path, "a.csv", f"{header}\nr s,x y\n")
    assert pairs(classifier("a.csv", **columns)) == [expected]


def test_numbers_are_no_text(tmp_path: Path, classifier: Any) -> None:
    write(tmp_path, "a.csv", "id,body,label\n17,r s,x\n")
    assert pairs(classifier("a.csv")) == [("r s", "x")]


def test_classifier_keeps_a_named_context_only(tmp_path: Path, classifier: Any) -> None:
    write(tmp_path, "a.csv", "text,context,label\na,b  b,c\n")
    assert classifier("a.csv")[0] == Example(text="a", label="c")
    expected = Example(text="a", context="b  b", label="c")
    assert classifier("a.csv", context="context")[0] == expected


@pytest.mark.parametrize(("source", "split", "expected"), [
    ("c.json", "train", ["t1", "ot1"]), ("c.json", "validation", ["v1"]),
    ("c.json", "test", ["ox1"]), ("c.json#val+oos_test", "train", ["v1", "ox1"]),
    ("c.json#train", "validation", ["t1"]),
])
def test_clinc_json(tmp_path: Path, classifier: Any, source: str, split: str,
                    expected: list[str]) -> None:
    write(tmp_path, "c.json", {"train": [["t1", "a"]], "val": [["v1", "b"]],
                               "oos_train": [["ot1", "oos"]], "oos_test": [["ox1", "oos"]]})
    assert [example.text for example in classifier(source, split)] == expected


def test_squad_json(tmp_path: Path, span: Any) -> None:
    write(tmp_path, "s.json", squad(
        question(" Who\tled? "), question("When?", None, is_impossible=True),
        question("Whom?", "the monks", 14, is_impossible=False)))
    assert span("s.json") == [
        Example(text="Who led?", context=CONTEXT, answers=(Answer(text="abbot", start=3),)),
        Example(text="When?", context=CONTEXT),
        Example(text="Whom?", context=CONTEXT, answers=(Answer(text="the monks", start=14),))]


def test_context_stays_but_for_surrogates(tmp_path: Path, span: Any) -> None:
    context = " e\u0301\x00\ud800 led\n"
    write(tmp_path, "s.json", squad(question("Who?", "\ud800 led", 4), context=context))
    assert span("s.json")[0] == Example(text="Who?", context=" e\u0301\x00\ufffd led\n",
                                        answers=(Answer(text="\ufffd led", start=4),))


ABBOT = (Answer(text="abbot", start=3),)


@pytest.mark.parametrize(("extra", "answers"), [
    ({"answers": {"text": ["abbot"], "answer_start": [3]}}, ABBOT),
    ({"answers": {"text": [], "answer_start": []}}, ()),
    ({"answers": [{"text": "abbot", "answer_start": 3}]}, ABBOT),
    ({"answers": '{"text": ["abbot"], "answer_start": [3]}'}, ABBOT),
    ({"answer": "abbot"}, ABBOT), ({"answer": ""}, ()), ({"answer": None}, ()),
    ({"answer": "e", "answer_start": 11}, (Answer(text="e", start=11),)),
    ({"answer": "e", "answer_start": None}, (Answer(text="e", start=10),)),
])
def test_span_tables(tmp_path: Path, span: Any, extra: dict[str, Any],
                     answers: tuple[Answer, ...]) -> None:
    context = "An abbot fee"  # the first "e" at 10, another at 11
    row = {"question": "Who?", "context": context, **extra}
    write(tmp_path, "s.jsonl", json.dumps(row))
    assert span("s.jsonl") == [Example(text="Who?", context=context, answers=answers)]


def test_span_csv_with_named_columns(tmp_path: Path, span: Any) -> None:
    write(tmp_path, "s.csv", "ask,page,answer,answer_start\nWho?,An abbot,abbot,3\nWhy?,x,,\n")
    assert span("s.csv", text="ask", context="page") == [
        Example(text="Who?", context="An abbot", answers=ABBOT), Example(text="Why?", context="x")]


def test_absolute_file_and_its_hashable_files(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", "text,label\na,b\n")
    source = str(tmp_path / "a.csv")
    rows = read_source(source, root=Path("elsewhere"), split="train", type="classifier")
    assert pairs(rows) == [("a", "b")]
    assert source_files(source, root=Path("elsewhere")) == [tmp_path / "a.csv"]


def test_source_files(tmp_path: Path) -> None:
    write(tmp_path, "c.json", {})
    (tmp_path / "set" / ".git").mkdir(parents=True)
    write(tmp_path / "set", "train.parquet", "")
    write(tmp_path / "set", ".git/head", "")
    assert source_files("c.json#val", root=tmp_path) == [tmp_path / "c.json"]
    assert source_files("hub:owner/name@plus", root=tmp_path) == []
    assert source_files("hub:set", root=tmp_path) == [(tmp_path / "set/train.parquet").resolve()]
    names = [file.name for file in source_files("sample:qa", root=tmp_path)]
    assert names == ["qa.train.json", "qa.validation.json"]


LONG = "An " + "x" * 300
CLASSIFIER_ERRORS = [
    ("a.csv", None, ["a.csv: no such file"]),
    ("", None, ["is a directory, expected a file", "hub:"]),
    ("a.xlsx", "", ["unknown suffix '.xlsx'", "'.csv', '.json', '.jsonl', '.parquet', '.tsv'"]),
    ("a.csv", "", ["a.csv: no rows, expected at least one"]),
    ("a.csv", "text,label\n", ["a.csv: no rows"]),
    ("a.jsonl", "\n", ["a.jsonl: no rows"]),
    ("a.csv", "text,kind\na,b\n", ["'label' or 'intent'", "the label", "['text', 'kind']"]),
    ("a.csv", "one,two,label\na,b,c\n", ["'content' for the text", "['one', 'two', 'label']"]),
    ("a.csv", "text,text,label\n", ["line 1", "['text', 'text', 'label']", "distinct"]),
    ("a.csv", 'text,label\n"a\nb",c\n,d\n', ["a.csv, line 4, text: got ''", "not empty"]),
    ("a.csv", "text,label\na,\n", ["line 2, label: got ''", "not empty"]),
    ("a.csv", 'text,label\nx,y\n"a,b\n', ["line 3: expected CSV after RFC 4180"]),
    ("a.csv", "text,label\na,b,c\n", ["line 2: got 3 fields in ['a', 'b', 'c'], expected 2"]),
    ("a.tsv", 'text\tlabel\n\n"a\tb"\t1\n', ["a.tsv, line 3: got 3 fields in", "expected 2"]),
    ("a.tsv", b"text\tlabel\na\t1\n\xe9t\xe9\t1\n", ["line 3: got the bytes b'\\xe9t", "UTF-8"]),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text"', ["line 2: got '{\"text\"'", "expected JSON"]),
    ("a.jsonl", "[1]", ["line 1: got [1], expected a JSON object"]),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b"}', ["line 2, label: got None"]),
    ("a.jsonl", '{"text": 5, "label": 1}', ["line 1, text: got 5", "not empty"]),
    ("a.jsonl", '{"text": "a", "label": NaN}', ["line 1, label: got nan"]),
    ("a.jsonl", '{"text": "a", "label": []}', ["line 1, label: got []"]),
    ("a.jsonl", '{"text": "\\u0000 ", "label": 1}', ["line 1, text: got '\\x00 '"]),
    ("a.json", "{", ["a.json: got '{', expected JSON"]),
    ("a.json", "[" * 100_000, ["a.json: got '[[[[", "expected JSON"]),
    ("a.json", [["a", "b"]], ["no key 'train' or 'oos_train'", "CLINC JSON", "are []"]),
    ("a.json", {"data": []}, ["no key 'train' or 'oos_train'", "['data']"]),
    ("a.json", {"train": {}}, ["a.json, train: got {}", "a list under 'train'"]),
    ("a.json", {"train": [["a", "b"], ["c"]]}, ["a.json, train[1]: got ['c']", "[text, label]"]),
    ("a.json", {"train": [["", "b"]]}, ["a.json, train[0], text: got ''"]),
    ("a.json", {"train": [["a", ""]]}, ["a.json, train[0], label: got ''"]),
    ("a.json#val+dev", {"val": []}, ["no key 'dev'", "['val']"]),
    ("a.csv#val", "text,label\na,b\n", ["a.csv: got #val", "only CLINC JSON"]),
    ("a.parquet", "PAR", ["a.parquet: expected Parquet"]),
    ("sample:topics", None,
     ["sample:topics", "['intent', 'qa', 'routing', 'sentiment', 'slots', 'topic']"]),
    ("hub:", None, ["hub: got no name", "hub:OWNER/NAME"]),
]


@pytest.mark.parametrize(("source", "content", "parts"), CLASSIFIER_ERRORS)
def test_classifier_errors(tmp_path: Path, classifier: Any, source: str, content: Any,
                           parts: list[str]) -> None:
    if content is not None:
        write(tmp_path, source.partition("#")[0], content)
    with pytest.raises(InputError) as caught:
        classifier(source)
    assert [part for part in parts if part not in str(caught.value)] == [], caught.value


@pytest.mark.parametrize("name", ["text", "context", "label"])
def test_wrong_named_column(tmp_path: Path, classifier: Any, name: str) -> None:
    write(tmp_path, "a.csv", "text,label\na,b\n")
    message = f"a.csv: no column 'nope' for the {name}; the columns are ['text', 'label']"
    with pytest.raises(InputError, match=re.escape(message)):
        classifier("a.csv", **{name: "nope"})


ITEM = "data[0].paragraphs[0].qas[0]"
PAIRS = '{"text": [...], "answer_start": [...]}'
SPAN_ERRORS = [
    ("s.json", [], ["s.json, data: got []", "a list under 'data'"]),
    ("s.json", {"data": 3}, ["s.json, data: got 3"]),
    ("s.json", {"data": [{}]}, ["data[0], paragraphs: got None"]),
    ("s.json", {"data": [{"paragraphs": [{"context": "a"}]}]}, ["data[0].paragraphs[0], qas"]),
    ("s.json", {"data": []}, ["s.json: no rows"]),
    ("s.json", squad(question(), context=" "), ["paragraphs[0], context: got ' '"]),
    ("s.json", squad(question("")), [ITEM, "question: got ''"]),
    ("s.json", squad({"question": "Who?"}), [ITEM, "answers: got None"]),
    ("s.json", squad(question(answer="")), [ITEM, "answer text: got ''"]),
    ("s.json", squad(question(start=4)), ["got 'abbot'", "from character 4 on", "'bbot '"]),
    ("s.json", squad(question(answer=" abbot")), ["got ' abbot'", "which is 'abbot '"]),
    ("s.json", squad(question(start=-5)), ["answer_start: got -5", "in [0, 24)"]),
    ("s.json", squad(question(start="3")), ["answer_start: got '3'"]),
    ("s.json", squad(question(is_impossible=True)), ["is_impossible: got True", "false with 1"]),
    ("s.json", squad(question(answer=None, is_impossible=False)), ["got False", "true with 0"]),
    ("s.json#train", squad(question()), ["s.json: got #train"]),
    ("s.csv", "question,answer\na,b\n", ["'context' for the context", "['question', 'answer']"]),
    ("s.csv", "question,context\na,b\n", ["no column 'answers' or 'answer'"]),
    ("s.csv", "question,context,answer\na,b,c\n", ["line 2, answer: got 'c'", "the context"]),
    ("s.csv", "question,context,answers\na,b,c\n", ["line 2, answers: got 'c'", PAIRS]),
    ("s.csv", "question,context,answer,answer_start\na,b,b,x\n", ["answer_start: got 'x'"]),
    ("s.csv", f"question,context,answer,answer_start\na,b,{LONG},0\n", ["...", "is 'b'"]),
    ("sample:sentiment", None, ["'question' for the text", "['text', 'label']"]),
]


@pytest.mark.parametrize(("source", "content", "parts"), SPAN_ERRORS)
def test_span_errors(tmp_path: Path, span: Any, source: str, content: Any,
                     parts: list[str]) -> None:
    if content is not None:
        write(tmp_path, source.partition("#")[0], content)
    with pytest.raises(InputError) as caught:
        span(source)
    assert [part for part in parts if part not in str(caught.value)] == [], caught.value
    assert LONG not in str(caught.value)


def write_sst2(folder: Path, validation: str = "validation") -> None:
    import datasets

    rows = [{"idx": 0, "sentence": "dull", "label": 0}, {"idx": 1, "sentence": "fun", "label": 1}]
    hidden = [{"idx": 2, "sentence": "odd", "label": -1}]
    classes = datasets.ClassLabel(names=["negative", "positive"])
    for split, part in (("train", rows), (validation, rows[1:]), ("test", hidden)):
        write_parquet(folder, f"data/{split}-00000-of-00001.parquet", part, label=classes)


@pytest.mark.usefixtures("cache")
def test_hub_folder_like_sst2(tmp_path: Path, classifier: Any) -> None:
    write_sst2(tmp_path / "glue@2")
    expected = [("dull", "negative"), ("fun", "positive")]
    assert pairs(classifier("hub:glue@2")) == expected
    assert pairs(classifier("hub:glue@2", "validation")) == [("fun", "positive")]
    assert pairs(classifier("glue@2/data/train-00000-of-00001.parquet")) == expected
    with pytest.raises(InputError, match=r"row 1, label: got -1, expected a class number in"):
        classifier("hub:glue@2", "test")


@pytest.mark.usefixtures("cache")
def test_hub_folder_like_squad(tmp_path: Path, span: Any) -> None:
    row = {"id": "1", "title": "t", "context": CONTEXT, "question": "Who led?",
           "answers": {"text": ["abbot"], "answer_start": [3]}}
    write_parquet(tmp_path / "squad", "plain_text/train-00000-of-00001.parquet", [row])
    assert span("hub:squad") == [Example(text="Who led?", context=CONTEXT, answers=ABBOT)]
    with pytest.raises(InputError, match=r"hub:squad has no split 'validation'.*\['train'\]"):
        span("hub:squad", "validation")


@pytest.mark.usefixtures("cache")
def test_hub_folder_with_configs_like_clinc_oos(tmp_path: Path, classifier: Any) -> None:
    import datasets

    folder = tmp_path / "clinc"
    classes = datasets.ClassLabel(names=["translate", "oos"])
    for config, text in (("plus", "p"), ("small", "s")):
        write_parquet(folder, f"{config}/train-00000-of-00001.parquet",
                      [{"text": text, "intent": 1}], intent=classes)
    configs = "".join(f"- config_name: {name}\n  data_files:\n"
                      f"  - {{split: train, path: {name}/train-*}}\n" for name in ("plus", "small"))
    write(folder, "README.md", f"---\nconfigs:\n{configs}---\n")
    assert pairs(classifier("hub:clinc@plus")) == [("p", "oos")]
    assert pairs(classifier(f"hub:{folder}@small")) == [("s", "oos")]
    with pytest.raises(InputError, match=r"hub:clinc@huge cannot be loaded.*'huge'"):
        classifier("hub:clinc@huge")


@pytest.mark.parametrize("name", ["val", "dev"])
@pytest.mark.usefixtures("cache")
def test_other_names_of_validation(name: str, classifier: Any,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = datasets.Dataset.from_list([{"text": name, "label": "x"}])
    calls = []
    monkeypatch.setattr("datasets.load_dataset", lambda *args: calls.append(args) or {name: rows})
    assert pairs(classifier("hub:owner/set@plus", "validation")) == [(name, "x")]
    assert calls == [("owner/set", "plus")]


def test_no_network(classifier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\nat length")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"hub:owner/name cannot.*the Hub\).*hub:FOLDER or"):
        classifier("hub:owner/name")


def sample(name: str, split: Any) -> list[Example]:
    types: dict[str, Any] = {"qa": "span", "slots": "tagger"}
    type_ = types.get(name, "classifier")
    return read_source(f"sample:{name}", root=Path("elsewhere"), split=split, type=type_)


@pytest.mark.parametrize("name", ["sentiment", "qa", "intent", "slots"])
def test_sample_has_no_test_split(name: str) -> None:
    with pytest.raises(InputError, match=rf"sample:{name} has no split 'test'.*\['train', 'valid"):
        sample(name, "test")


def test_sample_is_large_enough() -> None:
    sentiment = sample("sentiment", "train") + sample("sentiment", "validation")
    assert len(sentiment) >= 400
    assert {row.label for row in sentiment} == {"negative", "positive"}

    intents = Counter(row.label for row in sample("intent", "train"))
    assert intents["oos"] >= 100
    del intents["oos"]
    assert len(intents) >= 20
    assert min(intents.values()) >= 20

    questions = sample("qa", "train") + sample("qa", "validation")
    per_passage = Counter(row.context for row in questions)
    assert sum(count >= 4 for count in per_passage.values()) >= 60
    for split in ("train", "validation"):
        assert any(not row.answers for row in sample("qa", split))


@pytest.mark.parametrize(("name", "attribute"), [
    ("sentiment", "text"), ("intent", "text"), ("qa", "context"), ("slots", "text"),
])
def test_sample_validation_shares_nothing_with_training(name: str, attribute: str) -> None:
    train, validation = ({getattr(row, attribute).casefold() for row in sample(name, split)}
                         for split in ("train", "validation"))
    assert train & validation == set()


def test_sample_slots_validation_has_rows_and_spans_of_its_own() -> None:
    def spans(split: str) -> list[tuple[str, str]]:
        return [(kind, " ".join(row.text.casefold().split(" ")[first : last + 1]))
                for row in sample("slots", split) for kind, first, last in tag_spans(row.tags)]

    rows = {split: sample("slots", split) for split in ("train", "validation")}
    assert len(rows["train"]) >= 2000 and len(rows["validation"]) >= 400
    assert all(sum(set(row.tags) == {"O"} for row in part) >= 10 for part in rows.values())
    train, validation = spans("train"), spans("validation")
    counts = Counter(kind for kind, _ in validation)
    assert set(counts) == {"person", "place", "product", "quantity", "time", "vehicle"}
    assert min(counts.values()) >= 200
    seen = set(train)
    new = Counter(span[0] for span in validation if span not in seen)
    shares = {kind: new[kind] / counts[kind] for kind in counts}
    assert min(shares[kind] for kind in ("person", "time", "vehicle")) > 0.3
    assert shares["quantity"] > 0.7  # most are numbers of their own
    texts = {split: {row.text.casefold() for row in part} for split, part in rows.items()}
    assert texts["train"].isdisjoint(texts["validation"])
    # The same words mean different things: Kent and Bergen, Marsh and Stone, the ship Stavanger.
    names = {(split, kind): {name for of, name in part if of == kind}
             for split, part in (("train", train), ("validation", validation)) for kind in counts}
    assert {"kent", "bergen"} <= names["train", "place"] & names["validation", "person"]
    assert {"marsh", "stone"} <= names["train", "person"] & names["validation", "place"]
    assert "stavanger" in names["train", "vehicle"] & names["train", "place"]
