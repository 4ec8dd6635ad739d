"""Tiny saved models, rows on which they are measured, and a suite."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from moe.abstain import Reference
from moe.calibration import Calibration
from moe.checkpoint import Bundle, save_bundle

CALIBRATION = Calibration(
    temperature={"sentiment-0": 1.5}, out_of_scope={"intent": -1.0}, second_task=0.9
)


@pytest.fixture
def saved(word_bundle: Callable[..., Bundle], tmp_path: Path) -> Callable[..., Path]:
    """Saves a tiny mixture as a folder; `change` may damage the bundle before."""

    def build(
        name: str = "model", change: Callable[[Bundle], Bundle | None] = lambda bundle: None,
        calibration: Calibration = CALIBRATION,
    ) -> Path:
        bundle = word_bundle(calibration)
        save_bundle(change(bundle) or bundle, tmp_path / name)
        return tmp_path / name

    return build


@pytest.fixture
def with_tasks() -> Callable[..., Callable[[Bundle], None]]:
    """A change of the names that a bundle has for its tasks: `change(intent={"labels": ...})`."""

    def build(**changes: dict[str, Any]) -> Callable[[Bundle], None]:
        def change(bundle: Bundle) -> None:
            bundle.model.tasks = tuple(
                replace(task, **changes.get(task.name, {})) for task in bundle.model.tasks
            )

        return change

    return build


@pytest.fixture
def rows_folder(tmp_path: Path) -> Path:
    """Files of 24 rows a task: no tiny model knows their answers."""
    folder = tmp_path / "rows"
    folder.mkdir()
    moods = [f"the {w} film was {a} {k},{a}" for a in ("good", "bad") for w in ("very", "an")
             for k in range(6)]
    (folder / "mood.csv").write_text("\n".join(["text,label", *moods]))
    intents = [f"{label} the monks {k},{label}" for label in ("pay", "ask", "go", "oos")
               for k in range(6)]
    (folder / "intent.csv").write_text("\n".join(["text,label", *intents]))
    context = "an abbot led the monks"
    qas = [{"id": str(k), "question": f"who led the monks {k}",
            "answers": [{"text": "an abbot", "answer_start": 0}]} for k in range(24)]
    document = {"version": "v1.1", "data": [{"title": "t", "paragraphs": [
        {"context": context, "qas": qas}]}]}
    (folder / "qa.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def suite_file(rows_folder: Path) -> Callable[..., Path]:
    """Writes a suite of these rows; keyword arguments replace its entries."""

    def build(**changes: Any) -> Path:
        content = {
            "root": str(rows_folder),
            "tasks": {
                "sentiment": {"type": "classifier", "rows": "mood.csv"},
                "qa": {"type": "span", "rows": "qa.json"},
                "intent": {"type": "classifier", "rows": "intent.csv", "out_of_scope": "oos"},
            },
            "perturbations": ["upper"],
            "latency": None,
            "draws": 200,
            "rules": {
                "*/ece": {"max_rise": 1.0},
                "size/bytes": {"max_ratio": 1.1},
                "*": {"max_drop": 1.0},
            },
            **changes,
        }
        file = rows_folder / "suite.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return file

    return build


@pytest.fixture
def reference() -> Callable[[float], Reference]:
    """What to compare requests with, at a threshold; at -9 every request is refused."""
    import numpy as np

    def build(threshold: float) -> Reference:
        one = np.zeros((3, 32), dtype=np.float32)
        one[:, 0] = 1.0
        return Reference(centre_D=one[0] * 0, exemplars={"sentiment": one}, strangers_XD=-one,
                         threshold=threshold)

    return build
