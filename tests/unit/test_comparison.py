"""Budgets of both sides of a comparison, the bootstrap, and the list of ablations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from moe.ablation import VARIANTS, ablation_text, arguments_of, smallest_load
from moe.cli import parse_training
from moe.comparison import Side, paired_bootstrap, run_side, sides
from moe.config import ExperimentConfig, MixingConfig
from moe.runs import finished_run, read_result, write_result
from moe.types import InputError

CONFIGS = Path(__file__).parents[2] / "configs"
BUDGET = {"fraction": 0.5, "seed": 3, "batch_size": 32, "encoder_lr": 1e-4}


@pytest.fixture
def local() -> ExperimentConfig:
    """`local.yaml` with 96 rows of sentiment, 8 of qa and 24 of intent in a step."""
    config, _ = parse_training(["--config", str(CONFIGS / "local.yaml")])
    mixing = MixingConfig(kind="fixed", shares={"sentiment": 12.0, "qa": 1.0, "intent": 3.0})
    return replace(config, data=replace(config.data, batch_size=128, mixing=mixing))


def test_every_single_model_sees_the_rows_that_the_joint_one_sees(local: ExperimentConfig) -> None:
    found = {side.name: side.arguments for side in sides(local, 200, **BUDGET)}
    steps = {k: int(a[a.index("--trainer.max_steps") + 1]) for k, a in found.items()}
    # Half of 200 steps; 100 steps of 96, 8 and 24 rows are 300, 25 and 75 steps of 32.
    assert steps == {"joint": 100, "sentiment": 300, "qa": 25, "intent": 75}
    for name, arguments in found.items():
        words = ["--config", str(CONFIGS / "local.yaml"), *arguments]
        config, values = parse_training(words)
        assert list(config.selected_tasks) == ([*local.tasks] if name == "joint" else [name])
        assert config.seed_everything == 3
        assert values.trainer.val_check_interval == steps[name]  # measured at the end
        if name != "joint":
            task = config.tasks[name]
            assert (task.experts, task.weight, config.optimizer.encoder_lr) == (1, 1.0, 1e-4)
            assert (config.optimizer.schedule, config.optimizer.average) == ("linear", 0.0)


def test_a_comparison_needs_fixed_shares(local: ExperimentConfig) -> None:
    free = replace(local, data=replace(local.data, mixing=MixingConfig(kind="uniform")))
    with pytest.raises(InputError, match=r"mixing\.kind 'uniform': a comparison needs"):
        sides(free, 200, **BUDGET)


def test_bootstrap_of_a_constant_difference_has_no_width() -> None:
    single = np.array([0.0, 50.0, 100.0])
    found = paired_bootstrap(single + 2.0, single, draws=100)
    assert found == pytest.approx({"difference": 2.0, "low": 2.0, "high": 2.0})


def test_bootstrap_is_paired_and_about_two_standard_errors_wide() -> None:
    # Differences of +1 and -1 in equal number: mean 0, standard error 1 / sqrt(400) = 0.05.
    single = np.random.default_rng(0).normal(0, 100, 400)
    found = paired_bootstrap(single + np.tile([1.0, -1.0], 200), single)
    assert found["difference"] == pytest.approx(0.0)
    assert found["low"] == pytest.approx(-0.098, abs=0.01)
    assert found["high"] == pytest.approx(0.098, abs=0.01)
    assert found == paired_bootstrap(single + np.tile([1.0, -1.0], 200), single)  # seeded


def test_the_last_finished_run_is_found(tmp_path: Path) -> None:
    assert finished_run(tmp_path) is None
    for number in (0, 1, 2):
        (tmp_path / "local" / f"version_{number}").mkdir(parents=True)
    run = tmp_path / "local" / "version_1"
    write_result(run, {"minutes": 1.5})
    assert finished_run(tmp_path) == run  # version_2 was stopped
    assert read_result(run) == {"minutes": 1.5}
    with pytest.raises(InputError, match=r"version_2: no result\.json"):
        read_result(tmp_path / "local" / "version_2")


TRAIN = """
import pathlib, sys
run = pathlib.Path(sys.argv[sys.argv.index("--trainer.default_root_dir") + 1], "x", "version_0")
(run / "checkpoints").mkdir(parents=True)
for name in ("best.ckpt", "last.ckpt"):
    (run / "checkpoints" / name).write_text("")
if "--fails" not in sys.argv:
    (run / "result.json").write_text("{}")
"""


def test_a_side_is_trained_once_and_keeps_what_is_needed(tmp_path: Path) -> None:
    train = tmp_path / "train.py"
    train.write_text(TRAIN)
    run = run_side(Side(name="qa", arguments=()), ["--config", "c"], tmp_path, train)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["best.ckpt"]
    train.write_text("raise SystemExit(1)")
    assert run_side(Side(name="qa", arguments=()), [], tmp_path, train) == run  # not trained again


def test_a_side_that_fails_names_its_log(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    side = Side(name="qa", arguments=("--fails",))
    with pytest.raises(InputError, match=r"the training of qa failed, see .*qa\.log"):
        run_side(side, [], tmp_path, tmp_path / "train.py")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_a_valid_change(variant: str) -> None:
    base = ["--config", str(CONFIGS / "local.yaml")]
    config, _ = parse_training(base)
    numbers = {**vars(config.optimizer), **vars(config.model.loss)}
    changed, _ = parse_training([*base, *arguments_of(variant, config.tasks, numbers)])
    assert (changed == config) == (variant in ("as configured", "1 expert"))  # it has one


def test_factors_are_of_the_configs_own_value() -> None:
    assert arguments_of("encoder rate x 2", (), {"encoder_lr": 1e-4}) == [
        "--optimizer.encoder_lr", "0.0002",
    ]
    assert arguments_of("4 experts", ("a", "b"), {}) == [
        "--tasks.a.experts", "4", "--tasks.b.experts", "4",
    ]


def test_the_skewed_mix_is_about_90_9_1() -> None:
    words = arguments_of("4 experts, mix 90/9/1", ("a", "b", "c"), {})
    assert words[-1] == '{"a": 100.0, "b": 10.0, "c": 1.0}'  # of 111: 90.1, 9.0, 0.9 %


def test_smallest_load_is_inside_the_task() -> None:
    loads = {"a-0": 0.3, "a-1": 0.1, "b-0": 0.6}
    # a-1 has a quarter of its task's rows, fair would be a half.
    experts = {name: {"load": load} for name, load in loads.items()}
    assert smallest_load(experts) == pytest.approx(0.5)


def test_an_unknown_variant_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"--only 'trunk': no such variant, known: .*'trunk ffn'"):
        arguments_of("trunk", (), {})


def test_the_table_has_mean_and_half_the_range() -> None:
    text = ablation_text({"as configured": {"qa": [60.0, 63.0]}})
    assert "61.50 ± 1.50" in text.splitlines()[1]
