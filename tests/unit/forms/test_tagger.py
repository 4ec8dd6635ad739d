"""Labelled words by hand: read off a window, mixed, made spans of, fitted and measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from moe.calibration import Calibration
from moe.config import TaskConfig
from moe.data.formats import Example
from moe.data.windows import Words
from moe.decode import WindowSaid
from moe.forms import Collected, Source, tagger
from moe.forms.tagger import TagSaid
from moe.types import InputError, TaskSpec

SPEC = TaskSpec(name="slots", type="tagger", num_experts=2,
                labels=("O", "B-city", "I-city", "B-time", "I-time"))
NAMES = ("mood-0", "slots-0", "slots-1")
OUT, B_CITY, I_CITY, B_TIME, I_TIME = range(5)
TEXT = "to New York at 7"
WORDS = Words(starts_W=np.array([0, 1, 3, 4, 5]),
              offsets_W2=np.array([[0, 2], [3, 6], [7, 11], [12, 14], [15, 16]]))
GOLD = [OUT, B_CITY, I_CITY, OUT, B_TIME]


def sure(*classes: int, height: float = 9.0) -> np.ndarray:
    """Logits (W, 5) that are `height` at the classes and 0 elsewhere."""
    return height * np.eye(5)[list(classes)]


def one(logits: Any, words: Words = WORDS, text: str = TEXT, expert: int = 1) -> TagSaid:
    window = WindowSaid(experts=[expert], weights=[1.0], logits=[logits], offset=-9)
    return TagSaid(window=window, words=words, text=text)


def spans_of(said: TagSaid, calibration: Calibration | None = None) -> list[dict[str, Any]]:
    [answer] = tagger.answers(SPEC, [said], calibration or Calibration(), NAMES)
    assert list(answer) == ["spans"]
    return answer["spans"]


class Table:
    """The part of a TaskTable that a form sees."""

    spec = SPEC

    def __init__(self, tags: list[list[int]], texts: list[str] | None = None) -> None:
        self.rows: dict[str, Any] = {"tags": tags, "text": texts}
        if texts is not None:  # words are what is between blanks
            self.rows["word_offsets"] = [
                [place for i in range(len(text.split())) for place in
                 (len(" ".join([*text.split()[:i], ""])), len(" ".join(text.split()[: i + 1])))]
                for text in texts]

    def labels(self) -> np.ndarray:
        return np.full(len(self.rows["tags"]), -1)


def collected(said: list[TagSaid], tags: list[list[int]]) -> Collected:
    return Collected(table=Table(tags), row_N=np.arange(len(said)), said=said, expert_names=NAMES)


# --- labels -----------------------------------------------------------------------------------


def build(rows: list[tuple[str, ...]], **changes: Any) -> TaskSpec:
    config = TaskConfig(type="tagger", train="x", experts=2, **changes)
    return tagger.build_spec("slots", config, [Example(text="t", tags=tags) for tags in rows])


def test_labels_are_bio_tags_of_the_types() -> None:
    # A type that is only seen in spans of one word has an I- all the same.
    assert build([("B-time", "O"), ("B-city", "I-city")]) == SPEC
    assert build([("O",)], labels=["city", "time"]) == SPEC
    with pytest.raises(InputError, match="task slots: no tag but 'O' in 2 training rows"):
        build([("O",), ("O", "O")])


def test_description_counts_spans() -> None:
    rows = [Example(text="a b", tags=("B-city", "I-city")), Example(text="a", tags=("O",)),
            Example(text="a b", tags=("B-city", "B-time"))]
    assert tagger.describe(SPEC, rows[1:2]) == "2 types (none: 0 ... none: 0), 1 rows without spans"
    assert tagger.describe(SPEC, rows) == "2 types (city: 2 ... time: 1), 1 rows without spans"


# --- answers ----------------------------------------------------------------------------------


def test_a_word_is_read_at_its_first_token() -> None:
    # [CLS] and six tokens; "New" has two, so the tokens at 0, 1, 3, 4, 5 of the text count.
    logits_LC = np.arange(8 * 5, dtype=np.float64).reshape(8, 5)
    window = WindowSaid(experts=[1, 2], weights=[0.5, 0.5], logits=[logits_LC, -logits_LC],
                        offset=-8)  # [CLS], six tokens, [SEP]
    source = Source(text=TEXT, context="", offsets=np.zeros((0, 2)), words=lambda: WORDS)
    said = tagger.read([window], source)
    for sign, read in zip((1, -1), said.window.logits, strict=True):
        assert read[:, 0].tolist() == [sign * 5 * at for at in (1, 2, 4, 5, 6)]
    assert (said.text, said.words) == (TEXT, WORDS)


def test_words_behind_the_window_have_no_label() -> None:
    # Three tokens of the text fit: the words that begin at 0 and 1, not the one at 3.
    window = WindowSaid(experts=[1], weights=[1.0], logits=[sure(OUT, OUT, B_CITY, OUT, B_TIME)],
                        offset=-5)
    later = WindowSaid(experts=[1], weights=[1.0], logits=[sure(B_TIME)], offset=0)
    source = Source(text=TEXT, context="", offsets=np.zeros((0, 2)), words=lambda: WORDS)
    said = tagger.read([window, later], source)
    assert len(said.window.logits[0]) == 2
    assert [(s["label"], s["text"]) for s in spans_of(said)] == [("city", "New")]


def test_spans_are_characters_of_the_text() -> None:
    found = spans_of(one(sure(*GOLD)))
    # p of the best tag is e^9 / (e^9 + 4); a span of two words has its square.
    p = np.exp(9) / (np.exp(9) + 4)
    assert found == [
        {"label": "city", "start": 3, "end": 11, "text": "New York", "score": pytest.approx(p * p)},
        {"label": "time", "start": 15, "end": 16, "text": "7", "score": pytest.approx(p)},
    ]
    assert spans_of(one(NOTHING)) == []


def test_experts_are_mixed_as_probabilities_with_their_temperatures() -> None:
    # Expert 1 says 4/8 city and 1/8 each other, with temperature 1/2 that is 16/20 and 1/20;
    # expert 2 says 5/9 time. 0.25 and 0.75 of these: city 0.2 + 0.75/9, time 0.0125 + 3.75/9.
    first, second = np.log([[1, 4, 1, 1, 1.0]]), np.log([[1, 1, 1, 5, 1.0]])
    word = Words(starts_W=np.array([0]), offsets_W2=np.array([[0, 2]]))
    window = WindowSaid(experts=[1, 2], weights=[0.25, 0.75], logits=[first, second], offset=-3)
    said = TagSaid(window=window, words=word, text="to")
    [found] = spans_of(said, Calibration(temperature={"slots-0": 0.5}))
    assert (found["label"], found["score"]) == ("time", pytest.approx(0.0125 + 3.75 / 9))


def test_entries_of_a_pipeline() -> None:
    answer = {"spans": spans_of(one(sure(*GOLD)))}
    entries = tagger.entries(SPEC, answer)
    assert [(e["entity_group"], e["word"], e["start"], e["end"]) for e in entries] == [
        ("city", "New York", 3, 11), ("time", "7", 15, 16)]
    assert set(entries[0]) == {"entity_group", "word", "score", "start", "end"}
    assert tagger.entries(SPEC, {"spans": []}) == []


def test_backends_agree_by_the_token() -> None:
    ours, theirs = sure(OUT, B_CITY, OUT, OUT)[None], sure(OUT, B_TIME, OUT, B_TIME)[None]
    mask = np.array([[True, True, True, False]])  # the fourth is padding
    assert tagger.same_answer(ours, theirs, mask).tolist() == [pytest.approx(2 / 3)]
    assert tagger.same_answer(ours, ours + 1, mask).tolist() == [1.0]


# --- measuring --------------------------------------------------------------------------------

NOTHING = sure(*[OUT] * 5)
WRONG_END = sure(OUT, B_CITY, OUT, OUT, B_TIME)  # "New" for "New York"
BY_TOKEN = [OUT, B_CITY, -1, I_CITY, OUT, B_TIME]  # -1 behind the first token of "New"


def test_spans_are_right_with_both_ends() -> None:
    rows = collected([one(sure(*GOLD)), one(WRONG_END)], [BY_TOKEN, BY_TOKEN])
    both = np.array([True, True])
    # Of four true and four predicted spans three are right, of ten words nine.
    assert tagger.measure(rows, Calibration(), both, ~both) == pytest.approx(
        {"precision": 75.0, "recall": 75.0, "f1": 75.0, "word_accuracy": 0.9})
    assert tagger.row_scores(rows, Calibration(), both)["row_f1"].tolist() == [100.0, 50.0]


def test_a_row_that_went_elsewhere_has_no_spans_and_no_right_word() -> None:
    rows = collected([one(sure(*GOLD)), one(WRONG_END)], [BY_TOKEN, BY_TOKEN])
    first = np.array([True, False])
    # Two of two predicted and of four true spans; F1 = 2 * 2 / (2 + 4).
    assert tagger.measure(rows, Calibration(), first, ~first) == pytest.approx(
        {"precision": 100.0, "recall": 50.0, "f1": 100 * 4 / 6, "word_accuracy": 0.5})
    assert tagger.row_scores(rows, Calibration(), first)["row_f1"].tolist() == [100.0, 0.0]


def test_a_row_in_which_rightly_nothing_is_found() -> None:
    nothing = [OUT, OUT, -1, OUT, OUT, OUT]
    rows = collected([one(NOTHING), one(WRONG_END)], [nothing, nothing])
    scores = tagger.row_scores(rows, Calibration(), np.array([True, True]))
    assert scores["row_f1"].tolist() == [100.0, 0.0]


def test_rows_are_measured_in_their_order_in_the_table() -> None:
    rows = Collected(table=Table([[OUT] * 5, BY_TOKEN]), row_N=np.array([1, 0]),
                     said=[one(sure(*GOLD)), one(NOTHING)], expert_names=NAMES)
    both = np.array([True, True])
    assert tagger.measure(rows, Calibration(), both, ~both)["word_accuracy"] == 1.0
    assert [shown.right for shown in tagger.show(rows.select([1]), Calibration())] == [True]


def test_a_temperature_per_expert_on_the_words_of_its_rows() -> None:
    # Expert 1 is always right: as sharp as allowed. Expert 2 is right in one of two words, and
    # its logit there is log 4 more than the four others': p = 1/2 at temperature 1.
    word = Words(starts_W=np.array([0, 1]), offsets_W2=np.array([[0, 2], [3, 6]]))
    half = one(np.log([[1, 4, 1, 1, 1], [1, 4, 1, 1, 1.0]]), words=word, text="to New", expert=2)
    rows = collected([one(sure(*GOLD)), half], [BY_TOKEN, [B_CITY, OUT]])
    fitted = Calibration()
    tagger.fit(rows, fitted, 0.0)
    # Cross-entropy is log(c^x + 4) - x log(c) / 2 with c = 4 and x = 1/temperature:
    # c^x / (c^x + 4) = 1/2, so c^x = 4 and x = 1.
    assert fitted.temperature == pytest.approx({"slots-0": 0.05, "slots-1": 1.0}, rel=1e-4)
    assert (fitted.out_of_scope, fitted.no_answer) == ({}, {})


def test_words_behind_the_window_are_not_fitted_and_count_as_missed() -> None:
    cut = one(sure(OUT, B_CITY))
    rows = collected([cut], [BY_TOKEN])
    fitted = Calibration()
    tagger.fit(rows, fitted, 0.0)  # two words, both right
    assert fitted.temperature == pytest.approx({"slots-0": 0.05})
    numbers = tagger.measure(rows, fitted, np.array([True]), np.array([False]))
    # "New" is not "New York", 7 is missed; right are to, New, at.
    assert (numbers["f1"], numbers["word_accuracy"]) == (0.0, 0.6)


def test_shown_rows() -> None:
    rows = collected([one(WRONG_END), one(NOTHING)], [BY_TOKEN, [OUT] * 5])
    first, second = tagger.show(rows, Calibration())
    assert first.expected == "New York (city), 7 (time)"
    assert first.answered == "New (city), 7 (time)"
    assert not first.right and second.right
    assert second.expected == second.answered == "— nothing —"
    assert first.score == pytest.approx(np.exp(9) / (np.exp(9) + 4))


def test_a_text_of_which_the_tokenizer_leaves_nothing() -> None:
    none = Words(starts_W=np.zeros(0, dtype=int), offsets_W2=np.zeros((0, 2), dtype=int))
    empty = one(np.zeros((0, 5)), words=none, text="\u200b")
    rows = collected([empty, one(sure(*GOLD))], [[], BY_TOKEN])
    both = np.array([True, True])
    fitted = Calibration()
    tagger.fit(rows, fitted, 0.0)
    assert tagger.measure(rows, fitted, both, ~both)["f1"] == 100.0
    assert next(shown.score for shown in tagger.show(rows, fitted)) == 1.0
    assert spans_of(empty) == []


def test_the_baseline_repeats_what_training_says_of_a_word() -> None:
    train = Table([[B_CITY, OUT], [B_CITY, OUT], [OUT, OUT]], ["Oslo at", "oslo at", "OSLO on"])
    validation = Table([[OUT, B_CITY], [B_CITY, B_TIME]], ["at Oslo", "Bergen 7"])
    # Oslo is a city twice of three times; Bergen and 7 were not seen: one of three spans.
    assert tagger.baseline(train, validation) == pytest.approx(100 * 2 / (1 + 3))
