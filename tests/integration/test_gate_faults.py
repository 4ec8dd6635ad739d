"""Damaged copies of a trained model are refused, and an undamaged one passes.

The limits of `SUITE` were not changed after the first verdict on any of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from moe.checkpoint import Bundle, load_bundle, save_bundle
from moe.data.windows import TextTokenizer
from moe.release.check import check

pytestmark = pytest.mark.slow
Run = Callable[..., Any]
Damage = Callable[[Bundle], Bundle | None]
STEPS = 150
NAMES = [chr(97 + k) * 3 for k in range(26)]
SUITE: dict[str, Any] = {
    "tasks": {
        "mood": {"type": "classifier", "rows": "judged.csv"},
        "qa": {"type": "span", "rows": "judged.qa.json"},
        "intent": {"type": "classifier", "rows": "judged.intent.json", "out_of_scope": "oos"},
    },
    "perturbations": ["upper", "no_punctuation"],
    "draws": 300,
    "latency": None,
    "rules": {
        "*/ece*": {"max_rise": 15, "when_unsure": "pass"},
        "*/abstain_rate*": {"max_rise": 3, "when_unsure": "pass"},
        "size/bytes": {"max_ratio": 1.2},
        "*": {"max_drop": 8, "when_unsure": "pass"},
    },
}


@pytest.fixture(scope="session")
def rows(project: Path) -> Path:
    """Rows to judge on, in the folder of `project`."""
    lines = ["text,label"]
    for k in range(6, 14):
        lines += [f"{t} {k},{label}" for label, t in (
            ("good", "good film"), ("good", "i love it"), ("bad", "awful food here"),
            ("bad", "i hate it"), ("good", "a great day"), ("bad", "an awful day"))]
    (project / "judged.csv").write_text("\n".join(lines))
    intents = [[f"{t} {k}", label] for k in range(5, 13) for label, t in (
        ("time", "what time is it"), ("music", "play a song"), ("time", "give the time now"),
        ("music", "put on a song"))]
    outside = [[f"bus food {k}", "oos"] for k in range(6, 30)]
    (project / "judged.intent.json").write_text(json.dumps({"val": intents, "oos_val": outside}))
    paragraphs = []
    for k in range(40, 76):
        name = NAMES[k % 26]
        context = f"the mill was built in 17{k:02d} by {name}, it was good."
        answer = {"text": name, "answer_start": context.index(f"by {name}") + 3}
        paragraphs.append({"context": context, "qas": [
            {"id": str(k), "question": "who built the mill?", "answers": [answer]}]})
    document = {"version": "v1.1", "data": [{"title": "m", "paragraphs": paragraphs}]}
    (project / "judged.qa.json").write_text(json.dumps(document))
    suite = {**SUITE, "root": str(project)}
    (project / "suite.yaml").write_text(yaml.safe_dump(suite, sort_keys=False))
    return project


@pytest.fixture(scope="session")
def train(rows: Path, run: Run) -> Callable[[int], Path]:
    """The best checkpoint of a training with this seed."""

    def build(seed: int) -> Path:
        root = rows / f"gate{seed}"
        run("train.py", "--config", rows / "tiny.yaml", "--trainer.default_root_dir", root,
            "--trainer.max_steps", STEPS, "--trainer.val_check_interval", STEPS,
            "--checkpoint_every", STEPS, "--seed_everything", seed)
        return root / "tiny" / "version_0" / "checkpoints" / "best.ckpt"

    return build


@pytest.fixture(scope="session")
def baseline(train: Callable[[int], Path]) -> Path:
    return train(0)


# --- damages ----------------------------------------------------------------------------------


def labels_swapped(bundle: Bundle) -> None:
    bundle.model.tasks = tuple(
        replace(t, labels=t.labels[::-1]) if t.name == "mood" else t for t in bundle.model.tasks
    )


def experts(bundle: Bundle, task: str) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The named parameters of a task's experts."""
    spec = next(spec for spec in bundle.model.tasks if spec.name == task)
    for name in spec.expert_names:
        yield from bundle.model.experts[name].named_parameters()


def head(bundle: Bundle, task: str) -> Iterator[torch.Tensor]:
    """The parameters of the heads of a task's experts."""
    for name, parameter in experts(bundle, task):
        if "trunk" not in name:
            yield parameter


def logits_swapped(bundle: Bundle) -> None:
    """As `labels_swapped`, where no name shows it."""
    for parameter in head(bundle, "mood"):
        if len(parameter) == 2:
            parameter.copy_(parameter.flip(0))


def gate_permuted(bundle: Bundle) -> None:
    prototypes = bundle.model.gate.scores.prototypes
    prototypes.copy_(prototypes.roll(2, 0))


def zeroed(task: str) -> Damage:
    def damage(bundle: Bundle) -> None:
        for _, parameter in experts(bundle, task):
            parameter.zero_()

    return damage


def head_of_another_training(bundle: Bundle) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in head(bundle, "intent"):
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.std())


def calibrated(**changes: Any) -> Damage:
    def damage(bundle: Bundle) -> Bundle:
        return replace(bundle, calibration=replace(bundle.calibration, **changes))

    return damage


def cased_tokenizer(bundle: Bundle) -> Bundle:
    text = json.loads(bundle.tokenizer.to_json())
    text["normalizer"]["lowercase"] = False
    return replace(bundle, tokenizer=TextTokenizer.from_json(json.dumps(text)))


def words_moved(bundle: Bundle) -> None:
    """An encoder whose embeddings are those of a vocabulary in another order."""
    table = bundle.model.encoder.embeddings.word_embeddings.weight
    table.copy_(table.roll(7, 0))


def not_a_number(bundle: Bundle) -> None:
    next(head(bundle, "mood")).fill_(float("nan"))


DAMAGES: dict[str, Damage] = {
    "labels swapped in one task": labels_swapped,
    "logits swapped in one task": logits_swapped,
    "rows of the gate permuted": gate_permuted,
    "experts of mood zeroed": zeroed("mood"),
    "expert of qa zeroed": zeroed("qa"),
    "experts of intent zeroed": zeroed("intent"),
    "head of intent is another's": head_of_another_training,
    "nothing is out of scope": calibrated(out_of_scope={"intent": 99.0}),
    "everything is out of scope": calibrated(out_of_scope={"intent": -99.0}),
    "the threshold is gone": calibrated(out_of_scope={}),
}


def encoder_layer_lost(bundle: Bundle) -> None:
    for parameter in bundle.model.encoder.transformer.layer[-1].parameters():
        parameter.zero_()


def positions_lost(bundle: Bundle) -> None:
    table = bundle.model.encoder.embeddings.position_embeddings.weight
    table.copy_(table.flip(0))


def coarse(bundle: Bundle) -> None:
    """Weights of the heads rounded to two steps; what rounds to four may be as good as before."""
    for task in ("mood", "qa", "intent"):
        for parameter in head(bundle, task):
            step = parameter.abs().max()
            parameter.copy_((parameter / step).floor() * step)


def spans_reversed(bundle: Bundle) -> None:
    """Start and end of a span change places."""
    for parameter in head(bundle, "qa"):
        if len(parameter) == 2:
            parameter.copy_(parameter.flip(0))


def gate_deaf(bundle: Bundle) -> None:
    prototypes = bundle.model.gate.scores.prototypes
    prototypes.copy_(prototypes[:1].clone())


MORE_DAMAGES: dict[str, Damage] = {
    "a tokenizer that keeps case": cased_tokenizer,
    "words of another vocabulary": words_moved,
    "a parameter is not a number": not_a_number,
    "the last layer of the encoder lost": encoder_layer_lost,
    "positions in another order": positions_lost,
    "heads rounded to two steps": coarse,
    "start and end of a span swapped": spans_reversed,
    "a gate that sees no difference": gate_deaf,
    "no question has an answer": calibrated(no_answer={"qa": -9.0}),
    "temperatures of a hundred": calibrated(
        temperature={f"{task}-{n}": 100.0 for task in ("mood", "intent") for n in (0, 1)}
    ),
}


def damaged(source: Path, damage: Damage, folder: Path) -> Path:
    bundle = load_bundle(source)
    with torch.no_grad():
        bundle = damage(bundle) or bundle
    save_bundle(bundle, folder)
    return folder


@pytest.mark.parametrize("name", [*DAMAGES, *MORE_DAMAGES])
def test_a_damaged_model_is_refused(
    baseline: Path, rows: Path, tmp_path: Path, name: str
) -> None:
    damage = {**DAMAGES, **MORE_DAMAGES}[name]
    candidate = damaged(baseline, damage, tmp_path / "candidate")
    report = check(str(candidate), str(baseline), rows / "suite.yaml")
    print(name, [verdict.name for verdict in report.refused])
    assert not report.passed


def test_an_undamaged_copy_passes(baseline: Path, rows: Path, tmp_path: Path) -> None:
    candidate = damaged(baseline, lambda bundle: None, tmp_path / "candidate")
    report = check(str(candidate), str(baseline), rows / "suite.yaml")
    assert report.passed, report.refused
