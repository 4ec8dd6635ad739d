"""What telemetry says of a grown model is what its profile says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from moe.abstain import stranger_scores
from moe.bricks.fit import FitConfig
from moe.bricks.grow import grow
from moe.checkpoint import Bundle
from moe.config import OptimizerConfig, TaskConfig
from moe.data.sources import Example
from moe.data.tables import build_table
from moe.measure import collect_table
from moe.monitor.rows import row_of
from moe.predict import MixtureOfExperts
from moe.profile import validation_profile

from .conftest import OLD, texts

FAST = FitConfig(epochs=4, batch_size=8, optimizer=OptimizerConfig(expert_lr=3e-3))


def test_exemplars_of_an_added_task_count_where_the_gate_chose_it(
    old_model: Callable[..., Bundle], new_rows: Path, tmp_path: Path
) -> None:
    config = TaskConfig(type="classifier", train=str(new_rows))
    bundle = grow(old_model(), task="topic", config=config, fit=FAST).bundle
    reference, topic = bundle.calibration.reference, bundle.model.tasks[3]
    assert reference is not None and list(reference.grown) == ["topic"]
    asked = [*texts("cat purr dog bark", 20, 5), *texts(OLD["intent"], 20, 6)]
    rows = [Example(text=text, label="cats") for text in asked]
    table = build_table(rows, topic, 3, bundle.tokenizer, tmp_path / "cache")
    said = collect_table(bundle, table, torch.device("cpu"))
    profile = validation_profile([table], [said], bundle.calibration, bundle.model.tasks)
    answers = MixtureOfExperts(bundle, "cpu").predict(asked, explain=True)
    served = [row_of(a, named=False, tokens=1, characters=1, latency=1.0) for a in answers]
    first = {row.tasks[0] for row in served}
    assert "topic" in first and len(first) > 1
    ours = np.sort([row.strangeness for row in served])
    assert np.allclose(ours, np.sort(profile.strangeness_N), atol=1e-5)
    without = stranger_scores(said.pooled_ND, reference)  # no grown task counts
    assert not np.allclose(ours, np.sort(without), atol=1e-3)
