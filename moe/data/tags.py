"""BIO tags: rows that have them, the spans that they mark, and the words that they belong to.

Dimensions: W words of a row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moe.data.augment import add_noise
from moe.data.formats import Columns, Example, Place, Table, find_column
from moe.data.text import normalise_text
from moe.data.windows import TextTokenizer, Words
from moe.types import InputError, TaskSpec

OUTSIDE = "O"
TOKEN_COLUMNS, TAG_COLUMNS = ("tokens", "words"), ("tags", "ner_tags")
Span = tuple[str, int, int]  # type, first and last word
_TAG = re.compile(r"O|[BI]-\S+")


def tag_spans(tags: Sequence[str]) -> list[Span]:
    """The spans that BIO tags mark, in their order.

    As the CoNLL script reads them: an `I-` begins a span too, if no span of its type is open.
    """
    spans: list[Span] = []
    for word, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if prefix == "I" and spans and spans[-1][0] == kind and spans[-1][2] == word - 1:
            spans[-1] = (kind, spans[-1][1], word)
        elif kind:
            spans.append((kind, word, word))
    return spans


def tagged_examples(table: Table, columns: Columns) -> list[Example]:
    """One example per row of a table with a list of words and an equally long list of BIO tags."""
    tokens = find_column(table, "words", columns.text, TOKEN_COLUMNS)
    tags = find_column(table, "tags", columns.label, TAG_COLUMNS)
    names = table.class_names.get(tags)
    return [
        _example(_list(row.get(tokens), place, tokens), row.get(tags), names, place, tags)
        for place, row in table.rows
    ]


def _list(value: Any, place: Place, name: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise place.error(name, value, "a list that is not empty")
    return value


def _example(
    tokens: list[Any], tags: Any, names: Sequence[str] | None, place: Place, column: str
) -> Example:
    words = [_word(token, place) for token in tokens]
    tags = _list(tags, place, column)
    if len(tags) != len(words):
        raise place.error(column, tags, f"{len(words)} tags, one per word, got {len(tags)}")
    return Example(
        text=" ".join(words), tags=tuple(_tag(tag, names, place, column) for tag in tags)
    )


def _word(value: Any, place: Place) -> str:
    word = normalise_text(value) if isinstance(value, str) else ""
    if not word or " " in word:
        raise place.error("word", value, "a string without blanks that is not empty")
    return word


def _tag(value: Any, names: Sequence[str] | None, place: Place, column: str) -> str:
    if names is not None and isinstance(value, int) and 0 <= value < len(names):
        value = names[value]
    if not isinstance(value, str) or not _TAG.fullmatch(value):
        raise place.error(column, value, "a BIO tag such as 'O', 'B-city' or 'I-city'")
    return value


def tag_columns(example: Example, spec: TaskSpec, tokenizer: TextTokenizer) -> dict[str, Any]:
    """What a table keeps of a row: tags by token of the text and with noise, places of words.

    Noise that would change which words there are is left out.
    """
    words, noised_text = tokenizer.words(example.text), add_noise(example.text)
    noised = tokenizer.words(noised_text)
    if _word_kinds(noised_text, noised) != _word_kinds(example.text, words):
        noised_text, noised = example.text, words
    classes = _word_classes(example, spec, words)
    (ids, _), (noised_ids, _) = tokenizer.encode([example.text, noised_text])
    return {
        "noised_ids": noised_ids,
        "tags": _by_token(classes, words, len(ids)),
        "noised_tags": _by_token(classes, noised, len(noised_ids)),
        "word_offsets": words.offsets_W2.reshape(-1),
    }


def _word_kinds(text: str, words: Words) -> list[bool]:
    """Of each word whether it is more than punctuation; noise adds and drops only punctuation."""
    return [any(map(str.isalnum, text[start:end])) for start, end in words.offsets_W2]


def _word_classes(example: Example, spec: TaskSpec, words: Words) -> list[int]:
    """The class of each word, from the tag of the piece between blanks that it is a part of."""
    tags = [OUTSIDE] * len(example.tags)
    for kind, first, last in tag_spans(example.tags):  # also `I-` without a `B-` before it
        tags[first : last + 1] = [f"B-{kind}", *[f"I-{kind}"] * (last - first)]
    if unknown := sorted(set(tags) - set(spec.labels)):
        types = sorted({label[2:] for label in spec.labels[1:]})
        raise InputError(
            f"task {spec.name}: tag {unknown[0]!r} of {example.text[:60]!r} is of none of the "
            f"types {types}: correct the row, or list all types in tasks.{spec.name}.labels"
        )
    pieces = np.cumsum([0, *(len(piece) + 1 for piece in example.text.split(" "))])[:-1]
    piece_W = np.searchsorted(pieces, words.offsets_W2[:, 0], side="right") - 1
    new_W = np.diff(piece_W, prepend=-1) > 0
    return [
        spec.labels.index(tag if new or tag == OUTSIDE else f"I-{tag[2:]}")
        for tag, new in zip((tags[piece] for piece in piece_W), new_W, strict=True)
    ]


def _by_token(classes: Sequence[int], words: Words, num_tokens: int) -> NDArray[np.int32]:
    """The classes at the first tokens of their words (num_tokens,), -1 at the others."""
    tags = np.full(num_tokens, -1, dtype=np.int32)
    tags[words.starts_W] = classes
    return tags
