"""Two routers without a network, and the tables beside the gate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from moe.abstain import Reference
from moe.baseline_routers import by_rule, by_words, fit_rule, share_right
from moe.calibration import Calibration
from moe.checkpoint import Bundle
from moe.data.routing import RoutingRow, RoutingTable
from moe.predict import MixtureOfExperts
from moe.routing_report import Routers, refusals, requests_of, routing_text, two_answers


def row(text: str, *tasks: str, context: str | None = None, category: str = "a") -> RoutingRow:
    return RoutingRow(text=text, context=context, tasks=tasks, category=category)


TRAIN = [
    row("who led the monks", "qa", context="an abbot led the monks"),
    row("pay the abbot", "intent"),
    row("is it late?", "intent"),
    row("the film was very very good", "sentiment"),
]


def test_the_rule_asks_for_a_passage_a_question_mark_and_the_length() -> None:
    assert by_rule(TRAIN, longest_intent=3) == ["qa", "intent", "intent", "sentiment"]
    assert by_rule(TRAIN, longest_intent=6) == ["qa", "intent", "intent", "intent"]


def test_the_length_is_fitted_on_training_rows() -> None:
    # "pay the abbot" has 3 words and the opinion 6: 3 is the first of the lengths that part them.
    assert fit_rule(TRAIN) == 3


def test_words_learn_what_the_rule_cannot() -> None:
    rows = [row("good film", "sentiment"), row("pay now", "intent")]
    train = [row(f"{word} film {n}", "sentiment") for word in ("good", "bad") for n in range(5)]
    train += [row(f"pay {word} {n}", "intent") for word in ("now", "later") for n in range(5)]
    assert by_words(train, rows) == ["sentiment", "intent"]


def test_a_choice_is_right_if_it_is_one_of_the_tasks() -> None:
    rows = [row("x", "sentiment", "qa"), row("y", "intent")]
    assert share_right(rows, ["qa", "qa"]) == 0.5


def test_table_by_category() -> None:
    rows = [row("x", "qa"), row("y", "qa", category="b"), row("z", "intent", category="b")]
    table = Routers(rows=rows, gate=["qa"] * 3, rule=["intent"] * 3, words=["qa"] * 3,
                    refused=[True, False, False]).table()
    assert table["all"] == pytest.approx(
        {"n": 3, "gate": 2 / 3, "rule": 1 / 3, "words": 2 / 3, "refused": 1 / 3})
    assert table["b"] == {"n": 2, "gate": 0.5, "rule": 0.5, "words": 0.5, "refused": 0.0}


class Fake:
    """Answers both tasks of the first request, one of the second."""

    def predict(self, requests: list[dict]) -> list[dict]:
        assert [r["text"] for r in requests] == ["late again, when is the next", "nice, who"]
        return [
            {"answers": {"mood": {"label": "bad"}, "qa": {"text": "at noon"}}},
            {"answers": {"mood": {"label": "good"}}},
        ]


def test_two_answers_count_only_where_both_are_there_and_right() -> None:
    rows = [
        RoutingRow(text="late again, when is the next", context="c", tasks=("mood", "qa"),
                   answers={"mood": "bad", "answer": "noon"}),
        RoutingRow(text="nice, who", context="c", tasks=("qa", "mood"),
                   answers={"mood": "good", "answer": "Ada"}),
    ]
    found = two_answers(Fake(), rows)  # type: ignore[arg-type]
    # "at noon" against "noon": precision 1/2, recall 1, F1 2/3; nothing for the second.
    assert found == pytest.approx({
        "n": 2, "both_answer": 0.5, "label_right": 1.0, "exact_match": 0.0,
        "f1": 100 * (2 / 3) / 2, "both_right": 0.5,
    })


def test_refusals_by_kind_and_without_the_kind(word_bundle: Callable[..., Bundle]) -> None:
    bundle = word_bundle()
    names = [task.name for task in bundle.model.tasks]
    kinds = [row("the the the", category="news"), row("monks monks", category="code")]
    model = MixtureOfExperts(bundle)
    table = RoutingTable(kinds, names, bundle.tokenizer)
    reference = Reference(
        centre_D=np.zeros(64, dtype=np.float32),
        exemplars={"qa": np.ones((1, 64), dtype=np.float32) / np.sqrt(np.float32(64))},
        strangers_XD=-np.ones((1, 64), dtype=np.float32) / np.sqrt(np.float32(64)),
        threshold=-3.0,  # below every score: all are refused
    )
    model = MixtureOfExperts(word_bundle(Calibration(reference=reference)))
    own = [RoutingTable([row("the abbot led", "qa")], names, bundle.tokenizer)]
    found = refusals(model, own, table, table, own[0])  # type: ignore[arg-type]
    assert {kind: (v["n"], v["refused"]) for kind, v in found.items()} == {
        "news": (1.0, 1.0), "code": (1.0, 1.0),
    }
    assert all(v["held_out"] in (0.0, 0.5, 1.0) for v in found.values())


def test_an_added_task_refuses_by_its_own_threshold(word_bundle: Callable[..., Bundle]) -> None:
    unit = np.ones((1, 64), dtype=np.float32) / np.sqrt(np.float32(64))
    kinds = [row("the the the", category="news"), row("monks monks", category="code")]
    first = MixtureOfExperts(word_bundle()).predict("the the the")["routing"][0]["task"]
    reference = Reference(
        centre_D=np.zeros(64, dtype=np.float32),
        exemplars={"trained": unit, first: unit},
        strangers_XD=-unit,
        threshold=3.0,  # above every score: the trained tasks refuse nothing
        grown={first: -3.0},
    )
    bundle = word_bundle(Calibration(reference=reference))
    model = MixtureOfExperts(bundle)
    names = [task.name for task in bundle.model.tasks]
    table = RoutingTable(kinds, names, bundle.tokenizer)
    own = [RoutingTable([row("the abbot led", "qa")], names, bundle.tokenizer)]
    found = refusals(model, own, table, table)  # type: ignore[arg-type]
    said = model.predict(requests_of(kinds))
    assert {kind: v["refused"] for kind, v in found.items()} == {
        kind.category: float(answer["abstained"])
        for kind, answer in zip(kinds, said, strict=True)}
    assert found["news"]["refused"] == found["news"]["held_out"] == 1.0


def test_requests_name_no_task() -> None:
    assert requests_of(TRAIN[:1]) == [
        {"text": "who led the monks", "context": "an abbot led the monks"}
    ]


def test_the_text_has_every_table() -> None:
    text = routing_text({
        "hard": {"all": {"n": 2.0, "gate": 0.5, "rule": 0.25, "words": 1.0}},
        "refused": {"news": {"n": 4.0, "refused": 0.75, "held_out": 0.5}},
        "two_answers": {"n": 3.0, "both_right": 0.8},
    })
    lines = text.splitlines()
    assert lines[0].split() == ["hard", "rows", "gate", "rule", "words"]
    assert lines[1].split() == ["all", "2", "50.0", "25.0", "100.0"]
    assert lines[3].split() == ["news", "4", "75.0", "50.0"]
    assert "both_right 0.8" in lines[4]
