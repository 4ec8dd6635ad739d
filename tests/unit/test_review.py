"""How sure a model usually is, for the review of corrections."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moe.checkpoint import Bundle, save_checkpoint
from moe.profile import Profile, usual_confidence
from moe.review import sureness
from moe.types import InputError, TaskSpec

TASKS = tuple(TaskSpec(name=name, type="classifier", num_experts=1, labels=("a", "b"))
              for name in ("sentiment", "qa", "intent"))


def profile() -> Profile:
    """Five rows of sentiment, one of them rejected, three of intent without an answer."""
    scores = [0.5, 0.6, 0.7, 0.8, np.nan, *[np.nan] * 3]
    return Profile(
        task_N=np.array([0] * 5 + [2] * 3, dtype=np.int16),
        expert_N=np.zeros(8, dtype=np.int16),
        abstained_N=np.zeros(8, dtype=bool),
        out_of_scope_N=np.zeros(8, dtype=np.int8),
        no_answer_N=np.zeros(8, dtype=np.int8),
        confidence_N=np.array(scores, dtype=np.float32),
        strangeness_N=np.zeros(8, dtype=np.float32),
        fragmentation_N=np.zeros(8, dtype=np.float32),
        embedding_MD=np.zeros((8, 4), dtype=np.float16),
    )


def test_three_quarters_of_the_answers_are_surer() -> None:
    # A quarter of the way from the first of four to the last: 0.5 + 0.75 * 0.1.
    assert usual_confidence(profile(), TASKS) == {"sentiment": pytest.approx(0.575)}


def test_it_comes_from_the_checkpoint(
    word_bundle: Callable[..., Bundle], tmp_path: Path
) -> None:
    save_checkpoint(replace(word_bundle(), profile=profile()), tmp_path / "new.ckpt")
    assert sureness(str(tmp_path / "new.ckpt")) == {"sentiment": pytest.approx(0.575)}
    save_checkpoint(word_bundle(), tmp_path / "old.ckpt")
    with pytest.raises(InputError, match=r"old\.ckpt: saved without a profile of its validation"):
        sureness(str(tmp_path / "old.ckpt"))
