"""The study of merging: parents differ, every method is measured, and the model stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moe.bricks.merge import METHODS
from moe.bricks.merge_study import merge_study, read_halves
from moe.checkpoint import Bundle
from moe.config import TaskConfig
from moe.types import InputError


@pytest.fixture
def asked(word_bundle: Callable[..., Bundle], tmp_path: Path) -> Bundle:
    """A tiny model with 24 questions about passages for its task `qa`."""
    rows = [{"question": f"who led {i}", "context": f"the monks of {i} had an abbot",
             "answer": "an abbot"} for i in range(24)]
    (tmp_path / "qa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "held.jsonl").write_text("\n".join(json.dumps(
        {**row, "context": f"in the north {row['context']}"}) for row in rows))
    bundle = word_bundle()
    task = TaskConfig(type="span", train="qa.jsonl", validation="held.jsonl")
    data = replace(bundle.config.data, root=str(tmp_path), cache=str(tmp_path / "cache"))
    config = replace(bundle.config, tasks={**bundle.config.tasks, "qa": task}, data=data)
    return replace(bundle, config=config)


def test_every_method_is_measured_before_and_after_healing(asked: Bundle) -> None:
    halves = read_halves(asked, "qa", None, rows=8, validation=10)
    assert [len(table) for table in halves.parents] == [8, 8] and len(halves.validation) == 10
    one, two = ({row["text"] for row in part.read(range(8))} for part in halves.parents)
    assert not one & two
    before = {name: value.clone() for name, value in asked.model.state_dict().items()}
    lines: list[str] = []
    found = merge_study(asked, halves, healing_steps=2, say=lines.append)
    healed = [name for method in METHODS for name in (method, f"{method}, healed")]
    assert [*found] == ["as trained", "parent 1", "parent 2", *healed] and len(lines) == len(found)
    assert all(set(metrics) == {"f1", "exact_match"} for metrics in found.values())
    after = asked.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_what_is_no_study(asked: Bundle) -> None:
    with pytest.raises(InputError, match=r"--task 'intent': no task with a single.*\['qa'\]"):
        read_halves(asked, "intent", None, rows=8, validation=10)
    with pytest.raises(InputError, match="--rows 0: expected at least 1"):
        read_halves(asked, "qa", None, rows=0, validation=10)
