"""The whole gate on tiny models: the same model passes, damaged ones are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import torch

from moe.checkpoint import Bundle
from moe.release.check import Report, check
from moe.release.report import markdown, summary, write_report
from moe.types import InputError

Saved = Callable[..., Path]
SuiteFile = Callable[..., Path]


def refusals(report: Report) -> dict[str, str]:
    return {verdict.name: verdict.reason for verdict in report.refused}


def judged(saved: Saved, suite_file: SuiteFile, change: Any, **suite: Any) -> dict[str, str]:
    candidate = saved("candidate", change)
    return refusals(check(str(candidate), str(saved("baseline")), suite_file(**suite)))


def test_the_same_model_passes_and_every_change_is_zero(
    saved: Saved, suite_file: SuiteFile, tmp_path: Path
) -> None:
    report = check(str(saved("a")), str(saved("b")), suite_file())
    assert report.passed and refusals(report) == {}
    metrics = {v.name: v.measured for v in report.verdicts if v.measured is not None}
    # 24 rows a task; 6 of intent are out of scope (`rows_folder`).
    assert metrics["sentiment/accuracy"].n == 24 and metrics["intent/oos_recall"].n == 6
    assert metrics["intent/in_scope_accuracy"].n == 18 and metrics["qa/f1"].n == 24
    changes = {name: m.change.value for name, m in metrics.items() if m.change is not None}
    assert set(changes.values()) == {0.0} and "qa/f1@upper" in changes
    assert metrics["size/bytes"].ratio.value == 1.0
    assert report.candidate["hash"] == report.baseline["hash"]  # of the content, not the name


def test_without_a_baseline_absolute_limits_count(saved: Saved, suite_file: SuiteFile) -> None:
    rules = {"sentiment/routing_accuracy": {"min": 101.0}, "qa/f1": {"max_drop": 1.0}}
    report = check(str(saved()), None, suite_file(rules=rules))
    assert list(refusals(report)) == ["sentiment/routing_accuracy"]
    assert "is below 101" in refusals(report)["sentiment/routing_accuracy"]


def swap_labels(bundle: Bundle) -> None:
    bundle.model.tasks = tuple(
        replace(t, labels=t.labels[::-1]) if t.name == "sentiment" else t
        for t in bundle.model.tasks
    )


def permute_gate(bundle: Bundle) -> None:
    with torch.no_grad():
        prototypes = bundle.model.gate.scores.prototypes
        prototypes.copy_(prototypes.flip(0))


def break_numbers(bundle: Bundle) -> None:
    with torch.no_grad():
        for parameter in bundle.model.experts.parameters():
            parameter.fill_(float("nan"))


def other_tokenizer(bundle: Bundle) -> Bundle:
    from moe.data.windows import TextTokenizer

    text = json.loads(bundle.tokenizer.to_json())
    text["normalizer"]["lowercase"] = False
    return replace(bundle, tokenizer=TextTokenizer.from_json(json.dumps(text)))


def unfit(bundle: Bundle) -> Bundle:
    calibration = replace(bundle.calibration, out_of_scope={}, second_task=None, temperature={})
    return replace(bundle, calibration=calibration)


def reject_everything(bundle: Bundle) -> Bundle:
    return replace(
        bundle, calibration=replace(bundle.calibration, out_of_scope={"intent": -99.0})
    )


@pytest.mark.parametrize(("change", "name", "part"), [
    (swap_labels, "structure/labels", "another order: label 0 is 'good', was 'bad'"),
    (break_numbers, "structure/loads", "holds a NaN or an infinity"),
    (other_tokenizer, "structure/tokenizer", "differ in normalizer"),
    (unfit, "structure/fitted", "no out_of_scope threshold is fitted for ['intent']; second"),
])  # fmt: skip
def test_faults_of_structure(
    saved: Saved, suite_file: SuiteFile, change: Any, name: str, part: str
) -> None:
    assert part in judged(saved, suite_file, change)[name]


def test_another_gate_is_seen_in_the_routing(saved: Saved, suite_file: SuiteFile) -> None:
    found = judged(saved, suite_file, permute_gate)
    assert any(name.endswith("/routing_accuracy") for name in found), found


def test_a_threshold_that_rejects_everything_leaves_no_label(
    saved: Saved, suite_file: SuiteFile
) -> None:
    report = check(str(saved("a", reject_everything)), str(saved("b")), suite_file())
    change = {v.name: v.measured for v in report.verdicts if v.measured is not None}
    assert change["intent/oos_recall"].candidate >= change["intent/oos_recall"].baseline
    assert change["intent/in_scope_accuracy"].candidate == 0.0


def test_a_model_that_cannot_be_read_is_refused_and_one_that_is_not_there_a_mistake(
    saved: Saved, suite_file: SuiteFile, tmp_path: Path
) -> None:
    broken = saved("broken")
    (broken / "model.safetensors").write_bytes(b"torn")
    report = check(str(broken), str(saved("whole")), suite_file())
    assert "cannot be read" in refusals(report)["structure/loads"] and not report.passed
    with pytest.raises(InputError, match="nowhere: no model there"):
        check("nowhere", None, suite_file())
    with pytest.raises(InputError, match=r"broken.*cannot be read"):
        check(str(saved("whole")), str(broken), suite_file())


def test_canaries_must_pass(saved: Saved, suite_file: SuiteFile, rows_folder: Path) -> None:
    model = saved()
    from moe import MixtureOfExperts

    said = MixtureOfExperts.from_pretrained(model, "cpu").predict("good film")
    task = said["routing"][0]["task"]
    lines = [
        {"request": {"text": "good film"}, "expect": {"task": task}},
        {"request": {"text": "good film"}, "expect": {"task": "weather"}},
        {"request": {"text": "good film", "tasks": ["weather"]}, "expect": {"task": "weather"}},
    ]
    (rows_folder / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = refusals(check(str(model), None, suite_file(canaries="c.jsonl")))
    assert found["canary/2"] == f"'good film': task is {task!r}, expected 'weather'"
    assert "no task 'weather'" in found["canary/3"] and "canary/1" not in found


def test_the_report_says_the_same_three_times(
    saved: Saved, suite_file: SuiteFile, tmp_path: Path
) -> None:
    report = check(
        str(saved("a", swap_labels)), str(saved("b")),
        suite_file(rules={"qa/f1": {"max_drop": 1.0}}),
    )
    write_report(report, tmp_path / "gate" / "report")
    plain = json.loads((tmp_path / "gate" / "report.json").read_text())
    assert plain["passed"] is False
    assert [v["name"] for v in plain["verdicts"] if v["outcome"] == "refused"] == [
        "structure/labels"]
    suite = ET.parse(tmp_path / "gate" / "report.xml").getroot()
    assert suite.get("failures") == "1"
    assert [c.get("name") for c in suite if c.find("failure") is not None] == ["labels"]
    assert sum(c.find("skipped") is not None for c in suite) == int(suite.get("skipped") or 0) > 0
    text = (tmp_path / "gate" / "report.md").read_text()
    assert text == markdown(report) and "# Evaluation gate: refused" in text
    assert "| qa/f1 | 24 |" in text
    assert summary(report).splitlines()[-1].startswith("REFUSED: ")
