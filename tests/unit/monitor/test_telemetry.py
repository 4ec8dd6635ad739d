"""Rows, parts, bounds, and a disk that does not take them."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from moe.monitor import telemetry
from moe.monitor.reading import read_traffic
from moe.monitor.rows import Row, row_of
from moe.monitor.telemetry import TelemetryWriter
from moe.types import InputError, TaskSpec

SPECS = (
    TaskSpec(name="mood", type="classifier", num_experts=2, labels=("bad", "good")),
    TaskSpec(name="qa", type="span", num_experts=1),
)
EXPERTS = ("mood-0", "mood-1", "qa-0")


def answer(task: str, said: dict[str, Any] | None, **explanation: Any) -> dict[str, Any]:
    """As a predictor gives it with `explain`."""
    expert = "qa-0" if task == "qa" else "mood-1"
    return {
        "abstained": said is None,
        "routing": [{"task": task, "probability": 0.8, "experts": [
            {"name": expert, "weight": 1.0}]}],
        "answers": {} if said is None else {task: said},
        "explanation": {
            "probabilities": {"mood-0": 0.1, "mood-1": 0.2, "qa-0": 0.7},
            "strangeness": -0.375,
            "fragmentation": 0.5,
            **explanation,
        },
    }


def row(number: int, task: str = "mood", said: Any = None, **changes: Any) -> Row:
    said = {"label": "good", "score": 0.9} if said is None else said
    values = {"named": False, "tokens": 6, "characters": 12, "latency": 5.0, "model": "abc",
              "now": 1000.0 + number}
    return row_of(answer(task, said, **changes.pop("explanation", {})), **{**values, **changes})


@pytest.fixture
def writer(tmp_path: Path) -> Callable[..., TelemetryWriter]:
    def build(**limits: Any) -> TelemetryWriter:
        made = TelemetryWriter(tmp_path / "t", **{"part_seconds": 60.0, **limits})
        made.start()
        return made

    return build


def test_a_row_is_what_the_answer_says() -> None:
    found = row(1)
    assert (found.tasks, found.chosen, found.experts) == (("mood",), ("mood-1",), EXPERTS)
    assert found.confidence == 0.9 and found.probabilities == (0.1, 0.2, 0.7)
    assert found.strangeness == -0.375
    rejected = row(1, said={"label": None, "score": 0.7, "out_of_scope": True})
    assert rejected.confidence is None and rejected.out_of_scope is True
    refused = row_of(answer("mood", None, strangeness=None), named=True, tokens=1, characters=1,
                     latency=1.0)
    assert refused.abstained and refused.confidence is None and refused.strangeness is None
    assert refused.time == pytest.approx(time.time(), abs=5)


def test_rows_come_back_in_order_without_texts(
    writer: Callable[..., TelemetryWriter], tmp_path: Path
) -> None:
    made = writer(part_rows=3)
    nothing = {"text": "", "score": 0.4, "no_answer": True}
    rejected = {"label": None, "score": 0.7, "out_of_scope": True}
    for each in (row(4, "qa", nothing), row(1), row(2, said=rejected), row(3, named=True),
                 row(5, explanation={"strangeness": None})):
        made.record(each)
    made.close()
    parts = sorted((tmp_path / "t").iterdir())
    assert [pq.read_table(part).num_rows for part in parts] in ([3, 2], [2, 3])
    assert set(pq.read_table(parts[0]).column_names) == {
        "time", "model", "probabilities", "tasks", "experts", "latency_ms", "named", "abstained",
        "out_of_scope", "no_answer", "confidence", "strangeness", "fragmentation", "tokens",
        "characters",
    }  # fmt: skip
    traffic = read_traffic(tmp_path / "t", SPECS)
    found = traffic.profile
    assert (traffic.model, traffic.named, traffic.others) == ("abc", 1, 0)
    assert traffic.time_N.tolist() == [1_001_000_000, 1_002_000_000, 1_004_000_000, 1_005_000_000]
    assert found.task_N.tolist() == [0, 0, 1, 0] and found.expert_N.tolist() == [1, 1, 2, 1]
    assert found.out_of_scope_N.tolist() == [-1, 1, -1, -1]
    assert found.no_answer_N.tolist() == [-1, -1, 1, -1]
    assert np.isnan(found.confidence_N).tolist() == [False, True, False, False]
    assert np.isnan(found.strangeness_N).tolist() == [False, False, False, True]
    assert found.fragmentation_N.tolist() == [0.5] * 4


def test_embeddings_are_kept_in_half_precision(
    writer: Callable[..., TelemetryWriter], tmp_path: Path
) -> None:
    made = writer()
    vectors = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float16)
    for number in range(3):
        made.record(row(number, explanation={"embedding": vectors[number]}))
    made.close()
    assert np.array_equal(read_traffic(tmp_path / "t", SPECS).profile.embedding_MD, vectors)


def test_a_part_is_of_one_model(writer: Callable[..., TelemetryWriter], tmp_path: Path) -> None:
    made = writer()
    for number, model in enumerate(["a", "a", "b", "a"]):
        made.record(row(number, model=model))
    made.close()
    assert len(list((tmp_path / "t").glob("*.parquet"))) == 3
    last = read_traffic(tmp_path / "t", SPECS)
    assert (last.model, len(last.profile), last.others) == ("a", 3, 1)
    assert len(read_traffic(tmp_path / "t", SPECS, "b").profile) == 1
    with pytest.raises(InputError, match=r"--model c: no request of it in .* \['a', 'b'\]"):
        read_traffic(tmp_path / "t", SPECS, "c")
    with pytest.raises(InputError, match=r"experts \['mood-0', 'mood-1', 'qa-0'\], the checkpoint"):
        read_traffic(tmp_path / "t", SPECS[:1])


def test_the_oldest_parts_go(writer: Callable[..., TelemetryWriter], tmp_path: Path) -> None:
    made = writer(part_rows=1, max_bytes=1)
    for number in range(4):
        made.record(row(number))
    made.close()
    assert read_traffic(tmp_path / "t", SPECS).time_N.tolist() == [1_003_000_000]


def test_what_a_killed_process_left_goes(
    writer: Callable[..., TelemetryWriter], tmp_path: Path
) -> None:
    made = writer()
    old, new = (tmp_path / "t" / f".part-{name}.parquet.partial" for name in ("old", "new"))
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    made.record(row(1))
    made.close()
    assert not old.exists() and new.exists()


def test_a_disk_that_takes_nothing_costs_rows_and_nothing_else(
    writer: Callable[..., TelemetryWriter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    lost: list[int] = []
    full = threading.Event()
    write = pq.write_table

    def write_or_fail(table: Any, path: Path, **options: Any) -> None:
        if full.is_set():
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(table, path, **options)

    monkeypatch.setattr(pq, "write_table", write_or_fail)
    made = writer(part_rows=2, dropped=lost.append)
    full.set()
    for number in range(4):
        made.record(row(number))
    while sum(lost) < 4:
        time.sleep(0.01)
    assert [r.message for r in caplog.records] == ["telemetry is lost"], "said once"
    assert list((tmp_path / "t").iterdir()) == [], "no half-written part stays"
    full.clear()
    made.record(row(9))
    made.close()
    assert read_traffic(tmp_path / "t", SPECS).time_N.tolist() == [1_009_000_000]
    shutil.rmtree(tmp_path / "t")


def test_rows_that_nobody_takes_are_dropped_at_once(tmp_path: Path) -> None:
    lost: list[int] = []
    made = TelemetryWriter(tmp_path, waiting_rows=2, dropped=lost.append)  # not started
    began = time.monotonic()
    for number in range(5):
        made.record(row(number))
    assert lost == [1, 1, 1] and time.monotonic() - began < 1


def test_a_part_is_written_after_its_time(
    writer: Callable[..., TelemetryWriter], tmp_path: Path
) -> None:
    made = writer(part_seconds=0.05)
    made.record(row(1))
    end = time.monotonic() + 10
    while not list((tmp_path / "t").glob("*.parquet")):
        assert time.monotonic() < end, "it was not written"
        time.sleep(0.01)
    made.close()


def test_folders_that_do_not_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file: cannot be written"):
        TelemetryWriter(tmp_path / "file")
    with pytest.raises(InputError, match=r"no part-\*\.parquet there"):
        read_traffic(tmp_path, SPECS)
    (tmp_path / "part-1.parquet").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"part-1\.parquet: cannot be read as telemetry"):
        read_traffic(tmp_path, SPECS)
    assert telemetry._size(tmp_path / "gone") == 0
