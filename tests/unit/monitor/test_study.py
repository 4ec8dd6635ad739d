"""Streams are drawn as they say they are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from moe.monitor.drift import DriftConfig
from moe.monitor.study import (
    Answered,
    make_pool,
    more_typos,
    moved_share,
    new_domain,
    study,
    study_text,
    unchanged,
)
from moe.profile import Profile
from moe.types import TaskSpec

Draw = Callable[..., Profile]


@pytest.fixture
def answered(draw: Draw, specs: tuple[TaskSpec, ...]) -> Answered:
    """3,000 rows, 30 % of mood; misspelt ones cost more tokens, strangers are strange."""
    clean = draw(3000, 0)
    return Answered(
        specs=specs,
        task_N=clean.task_N.astype(np.int64),
        clean=clean,
        misspelt=draw(3000, 0, spelling=50.0),
        strangers=draw(100, 1, strange=99.0, moved=5.0),
    )


def test_streams_hold_what_they_say(answered: Answered) -> None:
    pool = make_pool(answered, 0)
    assert len(pool.reference) == 2000 and sum(map(len, pool.rows_T)) == 1000
    assert pool.shares_T[0] == pytest.approx(0.3, abs=0.03)
    # Of 4,000 requests a share deviates by at most 0.03 in four standard deviations.
    same, moved = unchanged(pool, 4000), moved_share(pool, 4000)
    shares = [float((stream.task_N == 0).mean()) for stream in (same, moved)]
    assert shares[0] == pytest.approx(pool.shares_T[0], abs=0.03)
    assert abs(shares[1] - pool.shares_T[0]) == pytest.approx(0.1, abs=0.03)
    assert (new_domain(pool, 400).strangeness_N > 50).sum() == 60
    assert (more_typos(pool, 400).fragmentation_N > 25).sum() == 80


def test_the_reference_holds_no_request_of_a_stream(answered: Answered) -> None:
    pool = make_pool(answered, 3)
    seen = set(pool.reference.fragmentation_N.tolist())
    assert seen.isdisjoint(unchanged(pool, 500).fragmentation_N.tolist())


def test_a_study_counts_streams(answered: Answered) -> None:
    report = study(answered, DriftConfig(window=250), streams=2, length=500)
    assert report["unchanged"]["alerted"] == 0
    found = {name: values["flagged"] for name, values in report["changes"].items()}
    assert found["15 % of other domains and languages"] == 2
    assert found["20 % with a typo in every fifth word"] == 2
    text = study_text(report)
    assert "unchanged, 500 requests: 0 of 2 streams alert" in text
    assert "2 of 2 flagged in the window after the change (" in text
