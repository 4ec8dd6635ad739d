"""Train, check, promote, serve's telemetry, monitor, roll back: by the commands of a user."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from moe import MixtureOfExperts
from moe.checkpoint import load_bundle
from moe.measure import build_test_tables
from moe.monitor.reading import read_traffic
from moe.monitor.rows import row_of
from moe.monitor.telemetry import TelemetryWriter
from moe.predict import MixtureOfExperts as TorchMixture
from moe.release.hashing import model_hash

Run = Callable[..., Any]


@pytest.fixture(scope="session")
def best(project: Path, run: Run) -> Path:
    """The best checkpoint of a short run."""
    run("train.py", "--config", project / "tiny.yaml",
        "--trainer.default_root_dir", project / "loop", "--trainer.max_steps", 4)
    return project / "loop" / "tiny" / "version_0" / "checkpoints" / "best.ckpt"


@pytest.fixture
def suite(project: Path, tmp_path: Path) -> Path:
    """It lets everything pass that is not worse."""
    content = {
        "root": str(project),
        "tasks": {
            "mood": {"type": "classifier", "rows": "val.csv"},
            "qa": {"type": "span", "rows": "qa.val.json"},
            "intent": {"type": "classifier", "rows": "intent.json", "out_of_scope": "oos"},
        },
        "draws": 100,
        "latency": {"requests": 2, "repeats": 1},
        "rules": {"latency/*": {"max_ratio": 100.0}, "size/bytes": {"max_ratio": 2.0},
                  "*/ece": {"max_rise": 1.0}, "*": {"max_drop": 1.0}},
    }
    file = tmp_path / "suite.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def answered_rows(model: TorchMixture, requests: list[dict[str, Any]]) -> list[Any]:
    """What a server writes of these requests."""
    parsed = [model.parse(request) for request in requests]
    answers = model.answer(parsed, explain="embedding")
    return [
        row_of(answer, named=False, tokens=tokens, latency=1.0, model="abc",
               characters=len(request.text) + len(request.context or ""))
        for answer, request, tokens in zip(
            answers, parsed, model.count_tokens(parsed), strict=True
        )
    ]


def validation_requests(best: Path) -> list[dict[str, Any]]:
    tables = build_test_tables(load_bundle(best), (), None)
    return [
        {"text": record["text"], "context": record["context"]}
        for table in tables for record in table.read(range(len(table)))
    ]


def write(folder: Path, rows: list[Any]) -> None:
    writer = TelemetryWriter(folder)
    writer.start()
    for row in rows:
        writer.record(row)
    writer.close(30)


def test_the_profile_in_a_checkpoint_is_what_telemetry_says_of_its_validation(
    best: Path, tmp_path: Path
) -> None:
    bundle = load_bundle(best)
    profile = bundle.profile
    requests = validation_requests(best)
    assert profile is not None and len(profile) == len(requests) == 13
    model = TorchMixture.from_pretrained(best, "cpu")
    write(tmp_path / "t", answered_rows(model, requests))
    served = read_traffic(tmp_path / "t", bundle.model.tasks).profile
    # Validation computes in the numbers of the training, answers in 32 bits.
    tolerance = 2e-2 if bundle.precision.startswith("bf16") else 2e-3
    for name, saved in profile.arrays().items():
        ours, theirs = (np.sort(np.asarray(v, float).reshape(-1))
                        for v in (getattr(served, name), saved))
        if name in ("confidence_N", "no_answer_N", "out_of_scope_N"):
            continue  # of a row that is sent elsewhere the profile has none
        assert np.allclose(ours, theirs, atol=tolerance, equal_nan=True), name
    model.save_pretrained(tmp_path / "folder")
    again = load_bundle(tmp_path / "folder").profile
    assert again is not None
    for name, saved in profile.arrays().items():
        assert np.array_equal(saved, again.arrays()[name], equal_nan=saved.dtype.kind == "f")


def test_monitor_compares_traffic_with_the_checkpoint(
    best: Path, run: Run, tmp_path: Path
) -> None:
    requests = validation_requests(best)
    model = TorchMixture.from_pretrained(best, "cpu")
    rows = answered_rows(model, requests)
    chance = np.random.default_rng(0)
    drawn = enumerate(chance.integers(len(rows), size=300))
    same = [replace(rows[i], time=1000.0 + second) for second, i in drawn]
    write(tmp_path / "good", same)
    arguments = ("scripts/monitor.py", "--ckpt", best, "--window", 100)
    reference = ("--reference", tmp_path / "good")
    few = run(*arguments, "--telemetry", tmp_path / "good", code=2)
    assert "the reference has 13 requests, too few for windows of 100" in few.stderr
    done = run(*arguments, "--telemetry", tmp_path / "good", *reference)
    assert "0 of 3 windows alert; 300 requests of the model abc" in done.stdout
    strange = answered_rows(model, [{"text": "zzqq xxkj vvbw"}] * 60)
    write(tmp_path / "bad", same[:60] + strange)
    out = tmp_path / "report.json"
    done = run(*arguments, "--telemetry", tmp_path / "bad", *reference, "--json", out, code=1)
    assert "1 of 1 windows alert" in done.stdout and "breaking of words" in done.stdout
    assert json.loads(out.read_text())["alerts"] == done.stdout.splitlines()[:-1]
    run("scripts/monitor.py", "--ckpt", best, "--fit", tmp_path / "p.npz")
    fitted = ("--reference", tmp_path / "p.npz")
    few = run(*arguments, "--telemetry", tmp_path / "bad", *fitted, code=2)
    assert "the reference has 13 requests" in few.stderr


def test_check_promote_and_roll_back(best: Path, suite: Path, run: Run, tmp_path: Path) -> None:
    registry, report = tmp_path / "models" / "tiny", tmp_path / "gate" / "report"
    check = ("scripts/gate.py", "check", "--suite", suite, "--report", report)
    promote = ("scripts/gate.py", "promote", "--registry", registry, "--report", report)
    done = run(*check, "--candidate", best)
    assert "passed: " in done.stdout and f"report: {report}.md" in done.stdout
    assert "v1 is current" in run(*promote, "--candidate", best).stdout
    TorchMixture.from_pretrained(best, "cpu").save_pretrained(tmp_path / "folder")
    stale = run(*promote, "--candidate", tmp_path / "folder", code=1)
    assert stale.stderr.startswith("refused: ") and "check again" in stale.stderr
    run(*check, "--candidate", tmp_path / "folder", "--baseline", registry)
    judged = json.loads(report.with_suffix(".json").read_text())
    assert judged["baseline"]["hash"] == model_hash(best)
    assert "v2 is current" in run(*promote, "--candidate", tmp_path / "folder").stdout
    assert "v1 is current, it was v2" in run(
        "scripts/gate.py", "rollback", "--registry", registry).stdout


def test_a_worse_model_is_refused(best: Path, suite: Path, run: Run, tmp_path: Path) -> None:
    model = MixtureOfExperts.from_pretrained(best, "cpu")
    model.save_pretrained(tmp_path / "worse")
    config = json.loads((tmp_path / "worse" / "config.json").read_text())
    mood = next(task for task in config["tasks"] if task["name"] == "mood")
    mood["labels"] = mood["labels"][::-1]
    (tmp_path / "worse" / "config.json").write_text(json.dumps(config))
    done = run(
        "scripts/gate.py", "check", "--suite", suite, "--candidate", tmp_path / "worse",
        "--baseline", best, "--report", tmp_path / "gate", code=1,
    )
    assert "refused: structure/labels: the task 'mood' has its labels in another" in done.stdout
    assert "REFUSED: " in done.stdout
    again = run("scripts/gate.py", "promote", "--registry", tmp_path / "models" / "tiny",
                "--candidate", tmp_path / "worse", "--report", tmp_path / "gate.json", code=1)
    assert "the gate refused this model: nothing is promoted" in again.stderr


@pytest.mark.parametrize(("arguments", "part"), [
    (["check", "--candidate", "no.ckpt", "--suite", "no.yaml"], "--suite no.yaml: no such file"),
    (["promote", "--registry", "no", "--candidate", "no.ckpt"], "no.ckpt: no model there"),
    (["rollback", "--registry", "no"], "--registry no: no such folder"),
])  # fmt: skip
def test_mistakes_of_the_command_line(run: Run, arguments: list[str], part: str) -> None:
    assert part in run("scripts/gate.py", *arguments, code=2).stderr
