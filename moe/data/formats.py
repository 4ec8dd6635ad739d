"""What a row is, and how rows are made of a table, of SQuAD JSON and of CLINC JSON.

Whatever is wrong with a row raises an `InputError` that holds the file, the row, the field, the
value and what was expected.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from moe.data.text import is_blank, normalise_text, replace_surrogates, shorten
from moe.types import InputError

Split = Literal["train", "validation", "test"]
By = Literal["text", "context"]  # what rows for training and validation must not share
CLINC_KEYS: Mapping[Split, tuple[str, str]] = {
    "train": ("train", "oos_train"),
    "validation": ("val", "oos_val"),
    "test": ("test", "oos_test"),
}
TEXT_COLUMNS = ("text", "sentence", "utterance", "query", "question", "review", "content")
LABEL_COLUMNS = ("label", "intent", "category", "class")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A piece of the context: `context[start : start + len(text)] == text`, in characters."""

    text: str
    start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One row of a task.

    Attributes:
        text: The text to classify, or the question; normalised (`normalise_text`).
        context: The passage of a span task, as it came but for lone surrogates.
        label: Class name of a classifier task, else None.
        answers: Accepted answers of a span task; empty where the question has none.
        tags: BIO tags of a tagger task, one for each piece of the text between blanks.
    """

    text: str
    context: str | None = None
    label: str | None = None
    answers: tuple[Answer, ...] = ()
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a table to read; None finds them. JSON formats have fixed names."""

    text: str | None = None
    context: str | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value stands: a file, and in it a row (`line 3`) or path (`data[0].qas[2]`)."""

    file: str
    row: str = ""

    def error(self, name: str, value: object, expected: str) -> InputError:
        """The error to raise for the field `name`."""
        where = ", ".join(part for part in (self.file, self.row, name) if part)
        return InputError(f"{where}: got {shorten(value)}, expected {expected}")


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows with named columns; absent values are None or missing."""

    file: str
    columns: list[str]
    rows: list[tuple[Place, Mapping[str, Any]]]
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)  # by class number


def classifier_examples(table: Table, columns: Columns) -> list[Example]:
    """One example per row of a table with a text, a label and, if named, a context column."""
    label = find_column(table, "label", columns.label, LABEL_COLUMNS)
    found = [name for name in TEXT_COLUMNS if name != label]
    text = find_column(table, "text", columns.text, found + _only_text_column(table, label))
    context = columns.context and find_column(table, "context", columns.context, ())
    return [
        Example(
            text=_text(row.get(text), place, text),
            context=_passage(row.get(context), place, context) if context else None,
            label=_label(row.get(label), place, label, table.class_names.get(label)),
        )
        for place, row in table.rows
    ]


def span_examples(table: Table, columns: Columns) -> list[Example]:
    """One example per row of a table with question, context, and `answers` or `answer`."""
    question = find_column(table, "text", columns.text, ("question",))
    passage = find_column(table, "context", columns.context, ("context",))
    target = find_column(table, "answers", None, ("answers", "answer"))
    read_answers = _listed_answers if target == "answers" else _flat_answer
    examples = []
    for place, row in table.rows:
        context = _passage(row.get(passage), place, passage)
        examples.append(
            Example(
                text=_text(row.get(question), place, question),
                context=context,
                answers=read_answers(row, context, place),
            )
        )
    return examples


def squad_examples(document: Any, file: str) -> list[Example]:
    """One example per question of parsed SQuAD JSON v1.1 or v2.0, in the order of the file."""
    examples = []
    for article, in_article in _items(document, "data", Place(file)):
        for paragraph, in_paragraph in _items(article, "paragraphs", in_article):
            questions = _items(paragraph, "qas", in_paragraph)
            context = _passage(paragraph.get("context"), in_paragraph, "context")
            for item, place in questions:
                _items(item, "answers", place)
                answers = _listed_answers(item, context, place)
                impossible = item.get("is_impossible", not answers)
                if impossible is not (not answers):
                    raise place.error(
                        "is_impossible",
                        impossible,
                        f"{str(not answers).lower()} with {len(answers)} answers",
                    )
                examples.append(
                    Example(
                        text=_text(item.get("question"), place, "question"),
                        context=context,
                        answers=answers,
                    )
                )
    return examples


def clinc_examples(document: Any, file: str, keys: Sequence[str]) -> list[Example]:
    """One example per `[text, label]` under these keys of parsed CLINC JSON, key by key."""
    there = sorted(document) if isinstance(document, dict) else []
    if missing := [key for key in keys if key not in there]:
        raise InputError(
            f"{file}: no key {' or '.join(map(repr, missing))} with a list of "
            f"[text, label] (CLINC JSON); the keys are {there}"
        )
    examples = []
    for key in keys:
        for item, place in _items(document, key, Place(file)):
            if not isinstance(item, list) or len(item) != 2:
                raise place.error("", item, "a list [text, label]")
            examples.append(
                Example(text=_text(item[0], place, "text"), label=_label(item[1], place, "label"))
            )
    return examples


def clinc_rows(document: Any, file: str, keys: Sequence[str] | None, split: Split) -> list[Example]:
    """CLINC JSON under the named keys, or under those of the split that are there."""
    natural = [key for key in CLINC_KEYS[split] if isinstance(document, dict) and key in document]
    return clinc_examples(document, file, keys or natural or CLINC_KEYS[split])


def find_column(table: Table, what: str, named: str | None, candidates: Sequence[str]) -> str:
    """The column that was named, or else the first candidate that is there."""
    wanted = candidates if named is None else (named,)
    for name in wanted:
        if name in table.columns:
            return name
    raise InputError(
        f"{table.file}: no column {' or '.join(map(repr, wanted))} for the {what}; "
        f"the columns are {table.columns}"
    )


def _only_text_column(table: Table, label: str) -> list[str]:
    """The one column beside the label that holds words among its first rows, if it is one."""
    first_rows = [row for _, row in table.rows[:100]]
    found = [
        name
        for name in table.columns
        if name != label
        and any(
            isinstance(row.get(name), str) and re.search(r"[^\W\d_]", row[name])
            for row in first_rows
        )
    ]
    return found if len(found) == 1 else []


def _items(parent: Any, key: str, place: Place) -> list[tuple[Any, Place]]:
    """The items of the list `parent[key]`, each with its place."""
    value = parent.get(key) if isinstance(parent, dict) else parent
    if not isinstance(parent, dict) or not isinstance(value, list):
        raise place.error(key, value, f"an object with a list under {key!r}")
    path = f"{place.row}.{key}".removeprefix(".")
    return [(item, Place(place.file, f"{path}[{i}]")) for i, item in enumerate(value)]


def _passage(value: object, place: Place, name: str) -> str:
    if not isinstance(value, str) or is_blank(value):
        raise place.error(name, value, "a string that is not empty")
    return replace_surrogates(value)  # else as it came: the answers are offsets into it


def _text(value: object, place: Place, name: str) -> str:
    return normalise_text(_passage(value, place, name))


def _label(value: object, place: Place, name: str, class_names: Sequence[str] | None = None) -> str:
    if class_names is not None and isinstance(value, int):
        if not 0 <= value < len(class_names):  # the hub marks hidden labels with -1
            raise place.error(name, value, f"a class number in [0, {len(class_names)})")
        return class_names[value]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of integers with gaps is read as floats
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    return _text(value, place, name)


def _listed_answers(row: Mapping[str, Any], context: str, place: Place) -> tuple[Answer, ...]:
    value: Any = row.get("answers")
    try:
        if isinstance(value, str):  # CSV and TSV
            value = json.loads(value)
        if isinstance(value, dict):
            pairs = list(zip(value["text"], value["answer_start"], strict=True))
        else:
            pairs = [(item["text"], item["answer_start"]) for item in value]
    except (ValueError, KeyError, TypeError) as error:
        raise place.error(
            "answers",
            value,
            'equally long lists {"text": [...], "answer_start": '
            '[...]} or a list of {"text": ..., "answer_start": ...}',
        ) from error
    return tuple(_answer(text, start, context, place) for text, start in pairs)


def _flat_answer(row: Mapping[str, Any], context: str, place: Place) -> tuple[Answer, ...]:
    text, start = row.get("answer"), row.get("answer_start")
    if text is None or (isinstance(text, str) and not text.strip()):
        return ()
    if start is None or start == "" or start != start:  # NaN marks a gap
        start = context.find(replace_surrogates(text)) if isinstance(text, str) else -1
        if start < 0:
            raise place.error("answer", text, "a piece of the context")
    elif (isinstance(start, str) and start.isdecimal()) or isinstance(start, float):
        start = int(start)  # a wrong fraction is found out when the text is compared
    return (_answer(text, start, context, place),)


def _answer(text: object, start: object, context: str, place: Place) -> Answer:
    if not isinstance(text, str) or not text.strip():
        raise place.error("answer text", text, "a string that is not empty")
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        raise place.error("answer_start", start, f"a character offset in [0, {len(context)})")
    answer = Answer(text=replace_surrogates(text), start=start)
    found = context[start : start + len(text)]
    if found != answer.text:
        raise place.error(
            "answer text", text, f"the context from character {start} on, which is {shorten(found)}"
        )
    return answer
