"""One label per word: the slots of a request, or the names in a text.

Words are what the tokenizer never joins (`moe.data.windows.Words`). The labels of the model are BIO
tags, `O` first; users see spans. The label of a word is read at its first token.

Dimensions: N rows, W words of a row, C tags.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moe.calibration import Calibration, fit_temperature
from moe.data.formats import By, Example, Split
from moe.data.tags import OUTSIDE, Span, tag_columns, tag_spans, tagged_examples
from moe.data.windows import TextTokenizer, Words
from moe.decode import Floats, Logits, WindowSaid, log_softmax
from moe.forms.base import Collected, LabelledRows, Shown, Source
from moe.metrics import span_scores
from moe.types import InputError, TaskSpec

if TYPE_CHECKING:
    from moe.config import TaskConfig

GROUP_BY: By = "text"
EVERY_WINDOW = False
SCHEMA: dict[str, Any] = {
    "title": "Spans",
    "type": "object",
    "required": ["spans"],
    "properties": {
        "spans": {
            "type": "array",
            "description": "in the order of the text, without overlap",
            "items": {
                "type": "object",
                "required": ["label", "start", "end", "text", "score"],
                "properties": {
                    "label": {"type": "string"},
                    "start": {"type": "integer", "description": "character of the text"},
                    "end": {"type": "integer", "description": "one past its last character"},
                    "text": {"type": "string"},
                    "score": {"type": "number", "description": "probability, in [0, 1]"},
                },
            },
        }
    },
}
_NOTHING = "— nothing —"


# --- labelled rows ----------------------------------------------------------------------------


read_table = tagged_examples


def read_json(document: Any, file: str, keys: Sequence[str] | None, split: Split) -> list[Example]:
    """There is no such format."""
    raise InputError(
        f"{file}: got '.json', expected a '.conll', '.jsonl' or '.parquet' file for a tagger"
    )


def build_spec(name: str, task: TaskConfig, train: Sequence[Example]) -> TaskSpec:
    """`O`, then `B-` and `I-` of each type: of those listed, or else of the training rows."""
    found = {tag[2:] for example in train for tag in example.tags if tag != OUTSIDE}
    types = task.labels or sorted(found)
    if not types:
        raise InputError(f"task {name}: no tag but 'O' in {len(train)} training rows")
    labels = (OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BI"))
    return TaskSpec(name=name, type=task.type, num_experts=task.experts, labels=labels)


def describe(spec: TaskSpec, train: Sequence[Example]) -> str:
    """Types, the most and the least frequent, and rows without any span."""
    spans = [tag_spans(example.tags) for example in train]
    counts = Counter(kind for row in spans for kind, _, _ in row).most_common() or [("none", 0)]
    (most, n), (least, fewest) = counts[0], counts[-1]
    none = sum(not row for row in spans)
    types = f"{len(spec.labels) // 2} types ({most}: {n} ... {least}: {fewest})"
    return f"{types}, {none} rows without spans"


def encode(
    example: Example, spec: TaskSpec, tokenizer: TextTokenizer, offsets: Any
) -> dict[str, Any]:
    """Tags by token, of the text and with noise; places of the words."""
    return tag_columns(example, spec, tokenizer)


# --- answers ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TagSaid:
    """What was said of the words of a text.

    Attributes:
        window: Logits (W', C) of the words in the first window, at most all.
        words: All words; those behind the window are `O`.
        text: The text in whose characters they are counted.
    """

    window: WindowSaid
    words: Words
    text: str


def read(windows: Sequence[WindowSaid], source: Source) -> TagSaid:
    """The first window at the first token of each word."""
    first, words = windows[0], source.words()
    positions = 1 + words.starts_W[words.starts_W < first.num_text]
    logits = [logits_LC[positions] for logits_LC in first.logits]
    return TagSaid(window=replace(first, logits=logits), words=words, text=source.text)


def _tags(
    spec: TaskSpec, said: TagSaid, calibration: Calibration, expert_names: Sequence[str]
) -> tuple[list[str], Floats]:
    """The most probable tag of each word, and its probability (W,), 1 behind the window."""
    temperature_E = calibration.temperatures(expert_names)
    window, num_words = said.window, len(said.words)
    mixed_WC = np.zeros((num_words, len(spec.labels)))
    mixed_WC[:, 0] = 1.0
    mixed_WC[: len(window.logits[0])] = sum(
        weight * np.exp(log_softmax(logits / temperature_E[expert]))
        for expert, weight, logits in zip(
            window.experts, window.weights, window.logits, strict=True
        )
    )
    return [spec.labels[best] for best in mixed_WC.argmax(1)], mixed_WC.max(1)


def answers(
    spec: TaskSpec,
    said: Sequence[TagSaid],
    calibration: Calibration,
    expert_names: Sequence[str],
) -> list[dict[str, Any]]:
    """The spans of each text; `score` is the product of the probabilities of a span's tags."""
    return [{"spans": _spans(spec, one, calibration, expert_names)} for one in said]


def _spans(
    spec: TaskSpec, said: TagSaid, calibration: Calibration, expert_names: Sequence[str]
) -> list[dict[str, Any]]:
    tags, probability_W = _tags(spec, said, calibration, expert_names)
    return [
        {
            "label": span[0],
            "start": int(said.words.offsets_W2[span[1], 0]),
            "end": int(said.words.offsets_W2[span[2], 1]),
            "text": _text(said, span),
            "score": float(probability_W[span[1] : span[2] + 1].prod()),
        }
        for span in tag_spans(tags)
    ]


def _text(said: TagSaid, span: Span) -> str:
    return said.text[said.words.offsets_W2[span[1], 0] : said.words.offsets_W2[span[2], 1]]


def entries(spec: TaskSpec, answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """As `token-classification` with an aggregation: one entry per span, perhaps none."""
    return [
        {
            "entity_group": s["label"],
            "word": s["text"],
            **{k: s[k] for k in ("score", "start", "end")},
        }
        for s in answer["spans"]
    ]


def same_answer(ours: Logits, theirs: Logits, attention_mask: NDArray[Any]) -> Floats:
    """Share of the tokens whose best tag is the same, padding left out."""
    same_BL = (ours.argmax(-1) == theirs.argmax(-1)) & attention_mask
    same: Floats = same_BL.sum(1) / attention_mask.sum(1)
    return same


# --- measuring --------------------------------------------------------------------------------


def _gold(collected: Collected) -> list[NDArray[np.int64]]:
    """The true classes (W,) of the words of each row."""
    rows = (np.array(tags, dtype=np.int64) for tags in collected.column("tags"))
    return [tags[tags >= 0] for tags in rows]


def fit(collected: Collected, fitted: Calibration, out_of_scope_recall: float) -> None:
    """A temperature per expert, on the words of the rows that it answered."""
    logits: dict[int, list[Floats]] = defaultdict(list)
    labels: dict[int, list[NDArray[np.int64]]] = defaultdict(list)
    for one, classes_W in zip(collected.said, _gold(collected), strict=True):
        for expert, logits_WC in zip(one.window.experts, one.window.logits, strict=True):
            logits[expert].append(logits_WC)
            labels[expert].append(classes_W[: len(logits_WC)])
    for expert, rows in logits.items():
        temperature = fit_temperature(np.concatenate(rows), np.concatenate(labels[expert]))
        fitted.temperature[collected.expert_names[expert]] = temperature


def _judge(
    collected: Collected, calibration: Calibration
) -> list[tuple[list[str], list[str], float]]:
    """Of each row the tags that were said, the true ones, and the former's mean probability."""
    spec, names = collected.spec, collected.expert_names
    judged = []
    for one, classes_W in zip(collected.said, _gold(collected), strict=True):
        tags, probability_W = _tags(spec, one, calibration, names)
        score = float(probability_W.mean()) if tags else 1.0  # the tokenizer may leave no word
        judged.append((tags, [spec.labels[c] for c in classes_W], score))
    return judged


def measure(
    collected: Collected, calibration: Calibration, ok_N: NDArray[Any], refused_N: NDArray[Any]
) -> dict[str, float]:
    """Precision, recall and F1 of spans, 0-100, and the share of words with the right tag.

    A row that did not reach its task has no spans and no right word.
    """
    judged = _judge(collected, calibration)
    predicted = [
        tag_spans(tags) if ok else [] for (tags, _, _), ok in zip(judged, ok_N, strict=True)
    ]
    right = [np.array(t) == np.array(g) for t, g, _ in judged]
    right_words = sum(row.sum() for row, ok in zip(right, ok_N, strict=True) if ok)
    return {
        **span_scores(predicted, [tag_spans(gold) for _, gold, _ in judged]),
        "word_accuracy": float(right_words / max(sum(map(len, right)), 1)),
    }


def row_scores(
    collected: Collected, calibration: Calibration, ok_N: NDArray[Any]
) -> dict[str, Floats]:
    """`row_f1`: the F1 of each row alone, 100 where rightly nothing is found. Its mean is not
    the F1 over all rows, in which rows with many spans count more."""
    scores = []
    for (tags, gold, _), ok in zip(_judge(collected, calibration), ok_N, strict=True):
        predicted, expected = tag_spans(tags), tag_spans(gold)
        nothing = 100.0 * (not predicted and not expected)
        scores.append(ok * max(span_scores([predicted], [expected])["f1"], nothing))
    return {"row_f1": np.array(scores, dtype=np.float64)}


def show(collected: Collected, calibration: Calibration) -> list[Shown]:
    """The spans of each row; the score is the mean probability of its tags."""

    def text(said: TagSaid, tags: Sequence[str]) -> str:
        spans = [f"{_text(said, span)} ({span[0]})" for span in tag_spans(tags)]
        return ", ".join(spans) or _NOTHING

    return [
        Shown(
            expected=text(one, gold),
            answered=text(one, tags),
            score=score,
            right=tag_spans(tags) == tag_spans(gold),
        )
        for one, (tags, gold, score) in zip(
            collected.said, _judge(collected, calibration), strict=True
        )
    ]


def baseline(train: LabelledRows, validation: LabelledRows) -> float:
    """F1, 0-100, of giving each word the tag that it has most often in training, `O` if none."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for words, tags in _tagged_words(train):
        for word, tag in zip(words, tags, strict=True):
            seen[word][tag] += 1
    usual = {word: counts.most_common(1)[0][0] for word, counts in seen.items()}
    rows = list(_tagged_words(validation))
    predicted = [tag_spans([usual.get(word, OUTSIDE) for word in words]) for words, _ in rows]
    return span_scores(predicted, [tag_spans(tags) for _, tags in rows])["f1"]


def _tagged_words(table: LabelledRows) -> list[tuple[list[str], list[str]]]:
    """The words of each row, without case, and their tags."""
    columns = (table.rows[name][:] for name in ("text", "word_offsets", "tags"))
    return [
        (
            [text[start:end].casefold() for start, end in np.reshape(offsets, (-1, 2))],
            [table.spec.labels[tag] for tag in tags if tag >= 0],
        )
        for text, offsets, tags in zip(*columns, strict=True)
    ]
