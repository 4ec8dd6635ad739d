"""Profiles of requests that were never asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from moe.monitor.reading import Traffic
from moe.profile import Profile
from moe.types import TaskSpec


@pytest.fixture
def specs() -> tuple[TaskSpec, ...]:
    """Experts 0 and 1 answer mood, 2 answers intent."""
    return (
        TaskSpec(name="mood", type="classifier", num_experts=2, labels=("bad", "good")),
        TaskSpec(name="intent", type="classifier", num_experts=1, labels=("pay", "ask"),
                 out_of_scope="oos"),
    )


@pytest.fixture
def draw() -> Callable[..., Profile]:
    """`draw(rows, seed)`: requests of which 30 % are mood; the arguments move what they name."""

    def build(rows: int, seed: int, *, mood: float = 0.3, second: float = 0.5, strange: float = 0.0,
              rejected: float = 0.1, refused: float = 0.0, spelling: float = 0.0,
              moved: float = 0.0, width: int = 8) -> Profile:
        chance = np.random.default_rng(seed)
        task_N = (chance.random(rows) >= mood).astype(np.int16)
        expert_N = np.where(task_N == 1, 2, chance.random(rows) < second).astype(np.int16)
        embedded = chance.normal(size=(rows, width)) + moved * (chance.random((rows, 1)) < 0.3)
        return Profile(
            task_N=task_N,
            expert_N=expert_N,
            abstained_N=chance.random(rows) < refused,
            out_of_scope_N=np.where(task_N, chance.random(rows) < rejected, -1).astype(np.int8),
            no_answer_N=np.full(rows, -1, dtype=np.int8),
            confidence_N=chance.beta(8, 2, rows).astype(np.float32),
            strangeness_N=(chance.normal(size=rows) + strange).astype(np.float32),
            fragmentation_N=(chance.normal(size=rows) + spelling).astype(np.float32),
            embedding_MD=embedded.astype(np.float16),
        )

    return build


@pytest.fixture
def traffic() -> Callable[..., Traffic]:
    """Requests a second apart."""

    def build(profile: Profile, **changes: Any) -> Traffic:
        times = np.arange(len(profile), dtype=np.int64) * 1_000_000
        return Traffic(model="abc", time_N=times, profile=profile, **changes)

    return build
