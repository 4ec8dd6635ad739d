"""Tests of two samples against numbers made by hand, and streams that change and that do not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe.monitor.drift import WEIGHTS, DriftConfig, watch_traffic
from moe.monitor.reading import Traffic
from moe.monitor.report import alert_lines, summary, to_json, write_html
from moe.monitor.two_samples import same_rate, same_shares, same_values, same_vectors
from moe.profile import Profile, join_profiles
from moe.types import InputError, TaskSpec

Draw = Callable[..., Profile]


def test_chi_square_of_shares() -> None:
    # 30 and 20 of 50 against 20 and 30: every cell is 5 off an expected 25, so 4 * 25 / 25 = 4;
    # with one degree of freedom p = erfc(sqrt(4 / 2)).
    assert same_shares([30, 20], [20, 30]) == pytest.approx(math.erfc(math.sqrt(2)))
    assert same_shares([30, 20], [60, 40]) == pytest.approx(1.0)
    # Two degrees of freedom: p = exp(-statistic / 2).
    # 30, 20, 10 against 10, 20, 30 of 60: expected 20, so 4 * 100 / 20 = 20.
    assert same_shares([30, 20, 10], [10, 20, 30]) == pytest.approx(math.exp(-10))
    # Exact shares of a half: 5 off an expected 25 twice, so 25 / 25 * 2 = 2.
    assert same_shares([30, 20], [7, 7], known=True) == pytest.approx(math.erfc(1.0), rel=1e-6)
    assert same_shares([0, 50], [0, 70]) == 1.0 and same_shares([0, 0], [3, 4]) == 1.0


def test_fishers_exact_test() -> None:
    # 3 of 3 against 0 of 3: one of C(6, 3) = 20 ways, doubled.
    assert same_rate(3, 3, 0, 3) == pytest.approx(0.1)
    # 2 of 3 against 1 of 3: P(at least 2) = (9 + 1) / 20, doubled is 1.
    assert same_rate(2, 3, 1, 3) == 1.0
    assert same_rate(0, 500, 0, 500) == 1.0 and same_rate(0, 0, 4, 5) == 1.0
    assert same_rate(75, 500, 10, 2000) < 1e-40


def test_rank_sums_add_up_over_strata() -> None:
    # All 10 of ours above all 10 of theirs: excess 10 * 10 / 2 = 50, variance 10 * 10 * 21 / 12
    # = 175 without ties, so z = 50 / sqrt(175).
    low, high = np.arange(10.0), np.arange(10.0) + 100
    p, shift = same_values([(high, low)])
    assert p == pytest.approx(math.erfc(50 / math.sqrt(175) / math.sqrt(2))) and shift == 0.5
    twice, _ = same_values([(high, low), (high, low)])
    assert twice == pytest.approx(math.erfc(math.sqrt(2) * 50 / math.sqrt(175) / math.sqrt(2)))
    opposed, none = same_values([(high, low), (low, high)])
    assert (opposed, none) == (1.0, 0.0)
    assert same_values([(high[:9], low)]) == (1.0, 0.0)  # too few
    assert same_values([(np.append(high, np.nan), low)])[0] == pytest.approx(p)
    assert same_values([(np.ones(20), np.ones(20))]) == (1.0, 0.0)  # nothing but ties


def test_discrepancy_of_vectors() -> None:
    chance = np.random.default_rng(0)
    draw = [chance.normal(size=(200, 8)).astype(np.float32) for _ in range(2)]
    alike, value = same_vectors(*draw)
    assert alike > 0.01 and abs(value) < 0.01
    moved = draw[0].copy()
    moved[:60, 0] += 3.0  # three tenths of the rows
    p, value = same_vectors(moved, draw[1])
    assert p < 1e-6 and value > 0.01


def test_p_values_of_unchanged_vectors_are_as_rare_as_they_say() -> None:
    chance = np.random.default_rng(1)
    found = [
        same_vectors(*(chance.normal(size=(40, 4)).astype(np.float32) for _ in range(2)))[0]
        for _ in range(200)
    ]
    # 20 of 200 are expected below 0.1, with a deviation of 4.2.
    assert 6 <= sum(p < 0.1 for p in found) <= 34
    assert min(found) > 1e-5


def test_unchanged_traffic_raises_no_alert(
    draw: Draw, specs: tuple[TaskSpec, ...], traffic: Callable[..., Traffic]
) -> None:
    windows = watch_traffic(
        draw(2000, 0, refused=0.005), traffic(draw(3200, 1, refused=0.005)), specs, DriftConfig()
    )
    assert [window.first for window in windows] == [0, 500, 1000, 1500, 2000, 2500]
    assert alert_lines(windows) == []
    assert [signal.name for signal in windows[0].signals] == list(WEIGHTS)
    assert sum(WEIGHTS.values()) == pytest.approx(1.0)


@pytest.mark.parametrize(("change", "signal", "words"), [
    ({"mood": 0.45}, "task share", "mood rose from 30"),
    ({"second": 0.8}, "expert load", "load inside mood: mood-0 fell from"),
    ({"refused": 0.15}, "abstained", "requests that fit no task rose from 0.0 % to"),
    ({"rejected": 0.3}, "out of scope", "out-of-scope rate of intent rose from"),
    ({"strange": 0.5}, "strangeness", "likeness to texts of no task"),
    ({"spelling": 0.5}, "spelling", "breaking of words"),
    ({"moved": 2.0}, "embedding", "embeddings moved"),
])  # fmt: skip
def test_each_change_is_named(
    draw: Draw, specs: tuple[TaskSpec, ...], traffic: Callable[..., Traffic],
    change: dict[str, float], signal: str, words: str,
) -> None:
    changed = join_profiles([draw(500, 1), draw(500, 2, **change)])
    windows = watch_traffic(draw(2000, 0), traffic(changed), specs, DriftConfig())
    assert windows[0].alerts == []
    assert [found.name for found in windows[1].alerts] == [signal]
    assert words in windows[1].alerts[0].reason
    assert "since 1970-01-01 00:08:20 UTC" in alert_lines(windows)[0]


def test_a_moved_mix_is_no_moved_embedding(
    draw: Draw, specs: tuple[TaskSpec, ...], traffic: Callable[..., Traffic]
) -> None:
    def apart(profile: Profile) -> Profile:  # the tasks lie far from each other
        profile.embedding_MD[:, 0] += (9 * profile.task_N).astype(np.float16)
        return profile

    windows = watch_traffic(
        apart(draw(2000, 0)), traffic(apart(draw(500, 1, mood=0.6))), specs, DriftConfig()
    )
    assert [signal.name for signal in windows[0].alerts] == ["task share"]


def test_levels_share_alpha_over_windows_and_signals() -> None:
    config = DriftConfig(alpha=0.02, horizon=10)
    assert config.level("task share") == pytest.approx(0.02 / 10 * 0.35)
    assert sum(config.level(name) for name in WEIGHTS) == pytest.approx(0.002)
    for values, part in [({"window": 10}, "window must be at least 100, got 10"),
                         ({"alpha": 0.9}, r"alpha must be in \[1e-09, 0.5\], got 0.9"),
                         ({"horizon": 0}, "horizon must be at least 1, got 0")]:
        with pytest.raises(InputError, match=part):
            DriftConfig(**values)


def test_too_few_requests_are_a_mistake(
    draw: Draw, specs: tuple[TaskSpec, ...], traffic: Callable[..., Traffic]
) -> None:
    with pytest.raises(InputError, match="499 requests, a window has 500"):
        watch_traffic(draw(2000, 0), traffic(draw(499, 1)), specs, DriftConfig())
    with pytest.raises(InputError, match="the reference has 100 requests, too few"):
        watch_traffic(draw(100, 0), traffic(draw(500, 1)), specs, DriftConfig())


def test_reports_hold_every_alert(
    draw: Draw, specs: tuple[TaskSpec, ...], traffic: Callable[..., Traffic], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    asked = traffic(join_profiles([draw(500, 1), draw(600, 2, mood=0.6)]), others=7, named=3)
    config = DriftConfig()
    windows = watch_traffic(draw(2000, 0), asked, specs, config)
    write_html(windows, asked, config, {"mood": 0.3, "intent": 0.7}, tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 2 and "http" not in html
    assert alert_lines(windows)[0].split(" (")[0] in html and 'class="alert"' in html
    plain: Any = json.loads(json.dumps(to_json(windows, asked, config)))
    assert plain["alerts"] == alert_lines(windows) and len(plain["windows"]) == 2
    last = summary(windows, asked).splitlines()[-1]
    assert last.startswith("1 of 2 windows alert; 1100 requests of the model abc, 100 wait")
    with pytest.raises(InputError, match=r"--html .*cannot be written"):
        write_html(windows, asked, config, {"mood": 1.0}, tmp_path / "no" / "r.html")


def test_tensorboard_events(
    draw: Draw, specs: tuple[TaskSpec, ...], traffic: Callable[..., Traffic], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from moe.monitor.pictures import write_tensorboard

    windows = watch_traffic(draw(2000, 0), traffic(draw(1000, 1)), specs, DriftConfig())
    write_tensorboard(windows, {"mood": 0.3, "intent": 0.7}, tmp_path)
    events = EventAccumulator(str(tmp_path)).Reload()
    shares = [event.value for event in events.Scalars("drift_share/mood")]
    assert shares == pytest.approx([window.shares["mood"] for window in windows])
    assert [event.step for event in events.Scalars("drift_evidence/task_share")] == [500, 1000]
    assert set(events.Tags()["images"]) == {"drift/task_shares", "drift/evidence"}
