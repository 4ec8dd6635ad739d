"""Verdicts from intervals, scores of single rows, and what a suite refuses to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe.bootstrap import Interval, paired_interval, ratio
from moe.data.augment import PERTURBATIONS, misspell
from moe.metrics import calibration_error
from moe.release.expect import failures
from moe.release.rules import Measured, judge
from moe.release.scores import Gold, calibration, expert_of, routing_metrics, task_metrics
from moe.release.suite import JudgedTask, Rule, Suite, load_suite
from moe.types import InputError

CONFIGS = Path(__file__).parents[3] / "configs"


def measured(change: tuple[float, float, float] | None = None, **values: Any) -> Measured:
    found = None if change is None else Interval(value=change[0], low=change[1], high=change[2])
    return Measured(name="m", n=9, change=found, **{"candidate": 80.0, **values})


@pytest.mark.parametrize(("change", "rule", "outcome", "part"), [
    # A fall of 1 (0 to 2) against a limit of 2: the whole interval is inside.
    ((-1.0, -2.0, 0.0), {"max_drop": 2}, "passed", "within its limits"),
    # A fall of 3 (2.5 to 4): the whole interval is outside.
    ((-3.0, -4.0, -2.5), {"max_drop": 2, "when_unsure": "pass"}, "refused",
     r"fell by 3 (2.5 to 4), allowed is 2"),
    # A fall of 1 (-1 to 3) says nothing.
    ((-1.0, -3.0, 1.0), {"max_drop": 2}, "refused", "does not show that it is within 2"),
    ((-1.0, -3.0, 1.0), {"max_drop": 2, "when_unsure": "pass"}, "passed", "passed by when_unsure"),
    ((3.0, 2.5, 4.0), {"max_drop": 2}, "passed", "within"),
    ((3.0, 2.5, 4.0), {"max_rise": 2}, "refused", "rose by 3 (2.5 to 4), allowed is 2"),
    (None, {"max_drop": 2}, "passed", "within"),  # no baseline
    (None, {"min": 81.0}, "refused", "80 is below 81"),
    (None, {"max": 79.0}, "refused", "80 is above 79"),
])  # fmt: skip
def test_a_limit_is_decided_on_the_interval(
    change: Any, rule: dict[str, Any], outcome: str, part: str
) -> None:
    found = judge(measured(change), Rule(**rule))
    assert found.outcome == outcome and part in found.reason


def test_ratios_and_numbers_that_are_none() -> None:
    slow = Measured(name="latency", n=9, candidate=30.0, baseline=20.0,
                    ratio=Interval(value=1.5, low=1.4, high=1.6))
    assert judge(slow, Rule(max_ratio=1.6)).outcome == "passed"
    assert "is times 1.5" in judge(slow, Rule(max_ratio=1.2)).reason
    assert judge(measured(candidate=float("nan")), Rule(max_drop=1)).reason == "not a number"
    assert judge(measured(), None).outcome == "reported"


def answer(task: str, said: dict[str, Any] | None, expert: str = "a-0") -> dict[str, Any]:
    return {
        "abstained": said is None,
        "routing": [{"task": task, "probability": 0.9, "experts": [
            {"name": "a-9", "weight": 0.2}, {"name": expert, "weight": 0.8}]}],
        "answers": {} if said is None else {task: said},
    }


def test_a_classifiers_rows() -> None:
    gold = [Gold(text="a", label="x"), Gold(text="b", label="y"), Gold(text="c", label="x"),
            Gold(text="d", label="x"), Gold(text="e", inside=False), Gold(text="f", inside=False),
            Gold(text="g", inside=False)]
    rejected = {"label": None, "score": 0.7, "out_of_scope": True}
    answers = [
        answer("t", {"label": "x", "score": 0.75, "out_of_scope": False}),  # right
        answer("t", {"label": "x", "score": 0.75, "out_of_scope": False}),  # wrong
        answer("u", {"label": "x", "score": 0.9}),  # routed elsewhere
        answer("t", rejected),  # a label was expected
        answer("t", rejected),  # rightly rejected
        answer("t", None),  # refused by the gate, as right
        answer("u", {"label": "x", "score": 0.9}),
    ]
    found = {k: m.value for k, m in task_metrics("t", False, True, gold, answers).items()}
    assert found == pytest.approx({
        "in_scope_accuracy": 100 / 4, "oos_recall": 200 / 3, "routing_accuracy": 300 / 4,
        "abstain_rate": 0.0,
        "ece": 25.0,  # two labels at 0.75, one of them right
    })  # fmt: skip


def test_a_span_that_was_not_reached_scores_nothing() -> None:
    gold = [Gold(text="who", spans=("Ada Brook",)), Gold(text="who", spans=("Ada Brook",)),
            Gold(text="who")]
    answers = [answer("q", {"text": "ada brook."}), answer("u", {"text": "ada brook"}),
               answer("q", {"text": "", "no_answer": True})]
    found = {k: m.value for k, m in task_metrics("q", True, False, gold, answers).items()}
    assert found["f1"] == found["exact_match"] == pytest.approx(200 / 3)


def test_routing_rows_and_the_expert_that_answered() -> None:
    answers = [answer("t", {}), answer("u", {}), answer("u", None), answer("t", {})]
    found = routing_metrics([("t",), ("t",), (), ()], answers)
    assert found["accuracy"].value == 50.0 and found["strangers_refused"].value == 50.0
    assert expert_of("t", answer("t", {}, "t-1")) == "t-1"  # of the larger weight
    assert expert_of("t", answer("u", {})) is None and expert_of("t", answer("t", None)) is None


def test_a_ratio_of_medians_has_an_interval() -> None:
    theirs = np.arange(1.0, 102.0)
    found = paired_interval(2 * theirs, theirs, compare=ratio, draws=100,
                            statistic=lambda rows: np.median(rows, axis=1))
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)


def test_a_high_confidence_has_draws_beyond_its_ends() -> None:
    # Of 400 rows, 200 differ by 1 from 0: the mean is 0.5, its standard error 0.025, and an
    # interval of 99.94 % reaches 3.43 of them to each side. 100 draws would give their extremes.
    ours, theirs = np.zeros(400), np.zeros(400)
    ours[:200] = 1
    found = paired_interval(ours, theirs, draws=100, confidence=0.9994)
    assert found.low == pytest.approx(0.5 - 3.43 * 0.025, abs=0.01)
    assert found.high == pytest.approx(0.5 + 3.43 * 0.025, abs=0.01)


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(3).random((2, 50))
    at_once = paired_interval(*rows, draws=1500, seed=1)
    monkeypatch.setattr("moe.bootstrap.AT_ONCE", 700)
    assert paired_interval(*rows, draws=1500, seed=1) == at_once


def test_the_calibration_of_a_draw_is_that_of_its_rows() -> None:
    chance = np.random.default_rng(0)
    confidence_DN = chance.random((3, 200))
    confidence_DN[:, :5] = 1.0
    right_DN = chance.random((3, 200)) < confidence_DN
    expected = [100 * calibration_error(c, r) for c, r in zip(confidence_DN, right_DN, strict=True)]
    rows_DN2 = np.stack([confidence_DN, right_DN], -1)
    assert calibration(rows_DN2) == pytest.approx(expected, abs=1e-3)
    unknown_DN2 = np.concatenate([rows_DN2, np.full((3, 7, 2), np.nan)], 1)
    assert calibration(unknown_DN2) == pytest.approx(expected, abs=1e-3)


def test_rules_that_pass_when_unsure_share_the_confidence() -> None:
    # Of eight metrics, three have a limit on a change and pass when unsure, counting the expert's.
    suite = Suite(
        tasks={"t": JudgedTask(type="classifier", rows="x.csv")},
        perturbations=[],
        rules={
            "t/accuracy": Rule(max_drop=1, when_unsure="pass"),
            "t/ece": Rule(max_rise=1),
            "t/routing_accuracy": Rule(min=90, when_unsure="pass"),
            "expert/*": Rule(max_drop=1, when_unsure="pass"),
            "latency/median_ms": Rule(max_ratio=2, when_unsure="pass"),
        },
    )
    one, two = suite.family(("t-0",)), suite.family(("t-0", "t-1"))
    assert suite.confidence_of("t/accuracy", one) == pytest.approx(1 - 0.05 / 3)
    assert suite.confidence_of("expert/t-1", two) == pytest.approx(1 - 0.05 / 4)
    for alone in ("t/ece", "t/routing_accuracy", "size/bytes"):
        assert suite.confidence_of(alone, one) == 0.95


def test_every_fifth_word_is_misspelt() -> None:
    text = "words stand here for being counted afterwards in this very long sentence"
    changed = [a != b for a, b in zip(text.split(), misspell(text).split(), strict=True)]
    assert [i for i, c in enumerate(changed) if c] == [0, 5, 10]
    assert misspell(text) == misspell(text)
    assert misspell("a b") == "a b"  # no two letters to swap
    assert PERTURBATIONS["no_punctuation"]("Well, no!") == "Well no"


@pytest.mark.parametrize(("expect", "wrong"), [
    ({"task": "t", "label": "X"}, []),
    ({"label": "y"}, ["label is 'x', expected 'y'"]),
    ({"abstained": True}, ["abstained is False, expected True"]),
    ({"answer": "x"}, ["answer is None, expected 'x'"]),
    ({"out_of_scope": False, "task": "u"}, ["task is 't', expected 'u'"]),
])  # fmt: skip
def test_what_an_answer_lacks(expect: dict[str, Any], wrong: list[str]) -> None:
    said = answer("t", {"label": "x", "score": 0.9, "out_of_scope": False})
    assert failures(expect, said) == wrong


@pytest.mark.parametrize(("changes", "part"), [
    ({"rules": {"*": {}}}, "a rule without a limit"),
    ({"rules": {"*": {"max_fall": 1}}}, "max_fall"),
    ({"rules": {"*": {"max_drop": -1}}}, "max_drop must be at least 0, got -1"),
    ({"rules": {"*": {"max_ratio": 0.5}}}, "max_ratio must be at least 1, got 0.5"),
    ({"perturbations": ["shouting"]}, "no such kind 'shouting', known: ['lower',"),
    ({"rows": 0}, "rows must be at least 1, got 0"),
    ({"confidence": 2.0}, r"in [0.5, 0.99], got 2.0"),
    ({"tasks": {}}, "at least one task"),
    ({"row": 3}, "row"),
])  # fmt: skip
def test_a_suite_checks_itself(suite_file: Any, changes: dict[str, Any], part: str) -> None:
    with pytest.raises(InputError) as error:
        load_suite(suite_file(**changes))
    assert part in str(error.value)


def test_a_rule_that_judges_nothing_is_a_mistake(suite_file: Any) -> None:
    suite = load_suite(suite_file(rules={"qa/f2": {"min": 1.0}}))
    with pytest.raises(InputError, match=r"'qa/f2' fits no metric, measured are \['sentiment"):
        suite.check_rules([])
    with pytest.raises(InputError, match=r"nowhere\.yaml: no such file"):
        load_suite("nowhere.yaml")


@pytest.mark.parametrize("path", sorted((CONFIGS / "suites").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_suite_is_whole(path: Path) -> None:
    from moe.release.canaries import read_canaries

    suite = load_suite(path)
    suite.check_rules(["sentiment-0"])
    assert read_canaries(path.parent / str(suite.canaries))
    assert path.read_text().startswith("#"), "a suite begins with its header"
    unjudged = [name for name in suite.metrics() if suite.rule(name) is None]
    assert unjudged in ([], ["qa/exact_match"]), unjudged
