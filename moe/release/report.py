"""The gate's report: JSON for programs, Markdown for people, JUnit XML for build servers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from moe.release.check import Report
from moe.release.rules import Measured, Verdict
from moe.types import InputError


def to_json(report: Report) -> dict[str, Any]:
    """Plain values; `promote` reads `passed`, the hashes and the canaries."""
    return {
        "passed": report.passed,
        "time": report.time,
        "suite": report.suite,
        "candidate": report.candidate,
        "baseline": report.baseline,
        "canaries": report.canaries,
        "verdicts": [verdict.to_dict() for verdict in report.verdicts],
    }


def write_report(report: Report, path: Path) -> None:
    """Writes `PATH.json`, `.md` and `.xml` beside each other; each appears complete or not."""
    texts = {
        ".json": json.dumps(to_json(report), indent=2) + "\n",
        ".md": markdown(report),
        ".xml": junit(report),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for suffix, text in texts.items():
            partial = path.with_name(f".{path.stem}.{os.getpid()}{suffix}")
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path.with_suffix(suffix))
    except OSError as error:
        raise InputError(f"--report {path}: cannot be written ({error.strerror})") from error


def summary(report: Report) -> str:
    """The verdict and every refusal, a line each."""
    judged = sum(verdict.outcome != "reported" for verdict in report.verdicts)
    lines = [f"refused: {verdict.name}: {verdict.reason}" for verdict in report.refused]
    result = "passed" if report.passed else "REFUSED"
    return "\n".join([*lines, f"{result}: {judged} checks, {len(lines)} refused"])


def markdown(report: Report) -> str:
    """A table of metrics, then structure and canaries."""
    result = "passed" if report.passed else "refused"
    lines = [f"# Evaluation gate: {result}", "", *_sides(report), ""]
    if report.refused:
        lines += ["## Refused", ""]
        lines += [f"- `{verdict.name}`: {verdict.reason}" for verdict in report.refused]
        lines.append("")
    numbers = [v for v in report.verdicts if v.measured is not None]
    if numbers:
        lines += ["## Metrics", "", *metrics_table(numbers), ""]
    others = [v for v in report.verdicts if v.measured is None]
    lines += ["## Structure and canaries", "", "| check | verdict | |", "| --- | --- | --- |"]
    lines += [f"| {v.name} | {v.outcome} | {_cell(v.reason)} |" for v in others]
    return "\n".join([*lines, ""])


def _sides(report: Report) -> list[str]:
    lines = [f"Suite `{report.suite.get('file')}`, {report.time}.", ""]
    lines += ["| | model | backend | SHA-256 | MB |", "| --- | --- | --- | --- | --- |"]
    for name, side in (("candidate", report.candidate), ("baseline", report.baseline)):
        if side is None:
            lines.append(f"| {name} | none | | | |")
            continue
        backend = " ".join(str(v) for v in (side["backend"], side["precision"]) if v)
        size = "" if side["size"] is None else f"{side['size'] / 1e6:.1f}"
        lines.append(
            f"| {name} | {side['source']} | {backend} | {str(side['hash'])[:12]} | {size} |"
        )
    return lines


def metrics_table(verdicts: Sequence[Verdict]) -> list[str]:
    """Lines of a Markdown table, one metric each."""
    lines = [
        "| metric | n | candidate | baseline | change (interval) | rule | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for verdict in verdicts:
        measured = verdict.measured
        assert measured is not None
        theirs = "" if measured.baseline is None else f"{measured.baseline:.4g}"
        lines.append(
            f"| {measured.name} | {measured.n} | {measured.candidate:.4g} | {theirs} | "
            f"{_change(measured)} | {verdict.rule} | {verdict.outcome} |"
        )
    return lines


def _change(measured: Measured) -> str:
    if measured.change is not None:
        c = measured.change
        return f"{c.value:+.3g} ({c.low:+.3g} to {c.high:+.3g})"
    if measured.ratio is not None:
        r = measured.ratio
        return f"x {r.value:.3g} ({r.low:.3g} to {r.high:.3g})"
    return ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def junit(report: Report) -> str:
    """One test case for each verdict; what no rule judges is skipped."""
    suite = ET.Element(
        "testsuite",
        name="evaluation gate",
        tests=str(len(report.verdicts)),
        failures=str(len(report.refused)),
        skipped=str(sum(v.outcome == "reported" for v in report.verdicts)),
        timestamp=report.time,
    )
    for verdict in report.verdicts:
        group, _, name = verdict.name.partition("/")
        case = ET.SubElement(suite, "testcase", classname=f"gate.{group}", name=name)
        if verdict.outcome == "refused":
            ET.SubElement(case, "failure", message=verdict.reason).text = _numbers(verdict)
        elif verdict.outcome == "reported":
            ET.SubElement(case, "skipped", message=verdict.reason)
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _numbers(verdict: Verdict) -> str:
    values: Mapping[str, Any] = verdict.to_dict()["measured"] or {}
    return json.dumps(values)
