"""The predictor on the exported graph beside that of torch, and without torch."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe import MixtureOfExperts, predict
from moe.abstain import Reference
from moe.checkpoint import Bundle
from moe.onnx.predictor import OnnxMixtureOfExperts
from moe.types import InputError

LONG = "the abbot led the monks who was very good " * 6  # several windows of 32 tokens
REQUESTS: list[Any] = [
    "the film was very good",
    "a",
    {"text": "who led the monks", "context": "the abbot led the monks", "id": "7"},
    {"text": "who led", "context": LONG},
    {"text": "bad film " * 30},  # cut
    {"text": "who", "context": LONG, "tasks": ["qa"]},
    {"text": "good", "tasks": ["sentiment", "intent"]},
    {"text": " the  abbot, led\tby an ok monks. ", "tasks": ["slots"]},
    {"text": "who led the monks", "context": LONG, "tasks": ["slots", "qa"]},
    {"text": "bad film " * 30, "tasks": ["slots"]},
    {"text": "who was bad", "context": "the film was bad", "tasks": ["intent", "qa"]},
]


def strangers(threshold: float) -> Reference:
    random = np.random.default_rng(0)
    rows = random.normal(size=(6, 4, 64)).astype(np.float16).astype(np.float32)
    return Reference(centre_D=rows[0, 0], strangers_XD=rows[1], threshold=threshold,
                     exemplars={"sentiment": rows[2], "qa": rows[3], "intent": rows[4],
                                "slots": rows[5]})


def near(a: Any, b: Any) -> bool:
    """Whether two answers have the same form, words and nearly the same numbers."""
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(near(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(near, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, abs_tol=1e-4)
    return bool(a == b)


def both(bundle: Bundle, folder: Path) -> tuple[predict.MixtureOfExperts, OnnxMixtureOfExperts]:
    onnx = MixtureOfExperts.from_pretrained(folder, backend="onnx", precision="fp32", threads=1)
    return predict.MixtureOfExperts(bundle, "cpu"), onnx


def test_the_same_answers_as_torch(bundle: Bundle, folder: Path) -> None:
    torch_model, onnx = both(bundle, folder)
    expected = torch_model.predict(REQUESTS, explain=True)
    for answer, other in zip(onnx.predict(REQUESTS, explain=True), expected, strict=True):
        assert near(answer, other), (answer, other)
    assert {name for answer in expected for name in answer["answers"]} == {
        "sentiment", "qa", "intent", "slots"}
    found = [answer["answers"]["slots"]["spans"] for answer in expected if "slots" in
             answer["answers"]]
    assert any(found)  # the model is not trained: what it finds is of no interest
    # Alone, too: an answer does not depend on its neighbours.
    assert all(near(onnx.predict(r, explain=True), e)
               for r, e in zip(REQUESTS, expected, strict=True))


def test_two_tasks_and_two_experts(bundle: Bundle, changed: Callable[..., Path]) -> None:
    torch_model, onnx = both(bundle, changed(top_k=2, multi_task_threshold=1e-9))
    bundle.model.top_k, bundle.model.multi_task_threshold = 2, 1e-9
    expected = torch_model.predict(REQUESTS)
    assert max(len(answer["answers"]) for answer in expected) == 4
    assert max(len(entry["experts"]) for a in expected for entry in a["routing"]) == 2
    assert near(onnx.predict(REQUESTS), expected)


@pytest.mark.parametrize(("tasks", "runs"), [
    (["intent"], 1), (["qa", "slots"], 1),  # one expert each: nothing waits for the gate
    (["sentiment"], 2), (["sentiment", "intent"], 2), (None, 2),
])
def test_certain_experts_run_with_the_encoder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tasks: list[str] | None, runs: int
) -> None:
    onnx = MixtureOfExperts.from_pretrained(folder, backend="onnx", precision="fp32", threads=1)
    graph, seen = onnx.bundle.graph, []
    run = graph._run
    monkeypatch.setattr(graph, "_run", lambda *given: seen.append(given) or run(*given))
    request = {"text": "who was bad", "context": "the film was bad"}
    onnx.predict(request if tasks is None else {**request, "tasks": tasks})
    assert len(seen) == runs


def test_what_the_gate_refuses(bundle: Bundle, changed: Callable[..., Path]) -> None:
    # Between the scores of requests: it refuses some.
    everyone = replace(bundle.calibration, reference=strangers(9.0))
    seen = predict.MixtureOfExperts(replace(bundle, calibration=everyone), "cpu").predict(
        REQUESTS[:5], explain=True)
    scores = []
    for answer in seen:
        distance = answer["explanation"]["distance"]
        scores.append(distance.pop("strangers") - max(distance.values()))
    reference = strangers(float(np.mean(sorted(scores)[1:3])))
    _, onnx = both(bundle, changed(reference=reference))
    calibration = replace(bundle.calibration, reference=reference)
    torch_model = predict.MixtureOfExperts(replace(bundle, calibration=calibration), "cpu")
    expected = torch_model.predict(REQUESTS, explain=True)
    assert {answer["abstained"] for answer in expected} == {True, False}
    assert near(onnx.predict(REQUESTS, explain=True), expected)


def test_a_stream_and_tokens_to_pay_for(bundle: Bundle, folder: Path) -> None:
    torch_model, onnx = both(bundle, folder)
    stream = onnx.predict(request for request in ["a film", "who"])
    assert near(next(stream), torch_model.predict("a film"))
    # [CLS] the film [SEP]; [CLS] who [SEP] the abbot [SEP]
    requests = [{"text": "the film"}, {"text": "who", "context": "the abbot"}]
    assert onnx.count_tokens([onnx.parse(request) for request in requests]) == [4, 6]
    with pytest.raises(InputError, match="text is empty"):
        onnx.predict("  ")


def test_torch_is_not_imported(folder: Path) -> None:
    program = (
        "import sys; from moe import MixtureOfExperts\n"
        f"model = MixtureOfExperts.from_pretrained({str(folder)!r}, backend='onnx', threads=1)\n"
        "print(model.predict(text='who led', context='the abbot led', explain=True))\n"
        "heavy = {'torch', 'transformers', 'lightning', 'datasets', 'onnx', 'pyarrow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "answers" in done.stdout


def test_mistakes_at_the_door(folder: Path) -> None:
    with pytest.raises(InputError, match="backend must be 'torch' or 'onnx', got 'jax'"):
        MixtureOfExperts.from_pretrained(folder, backend="jax")  # type: ignore[call-overload]
    with pytest.raises(InputError, match="device 'cuda' goes with backend 'torch'"):
        MixtureOfExperts.from_pretrained(folder, "cuda", backend="onnx")  # type: ignore[call-overload]
