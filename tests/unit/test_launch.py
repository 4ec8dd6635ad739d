"""Where a training runs, what is refused, and how each of several processes ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from moe.launch import _run, exchange, launch
from moe.types import InputError, NonFiniteError


def places(**changes: Any) -> dict[str, Any]:
    values = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}
    return {**values, **changes}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # comes back afterwards


@pytest.mark.parametrize("devices", [1, "1", "auto"])
def test_one_device_is_this_process(devices: int | str) -> None:
    done: list[int] = []
    launch(places(devices=devices), lambda: done.append(1))
    assert done == [1]


@pytest.mark.parametrize("devices", [[0], 0, "two"])
def test_devices_that_are_none(devices: Any) -> None:
    with pytest.raises(InputError, match=r"trainer: .*devices"):
        launch(places(devices=devices), pytest.fail)


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_more_processes_than_devices_would_train_alone(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "4")
    with pytest.raises(InputError, match="4 processes were started for 1 devices on 1 machines"):
        launch(places(), pytest.fail)


@pytest.mark.parametrize("strategy", ["fsdp", "deepspeed", "ddp_spawn"])
def test_another_strategy_is_refused(strategy: str) -> None:
    with pytest.raises(InputError, match=rf"trainer.strategy {strategy}: 2 devices .*scale.md"):
        launch(places(devices=2, strategy=strategy), pytest.fail)


def test_what_the_exchange_relies_on() -> None:
    kwargs = exchange()._ddp_kwargs
    # Without the first a step whose rows leave an expert idle raises an error.
    assert kwargs["find_unused_parameters"] and kwargs["gradient_as_bucket_view"]
    assert not kwargs.get("static_graph", False)  # data decide which experts run


def ends(error: BaseException | None) -> Callable[[], None]:
    def work() -> None:
        print("from work")
        if error is not None:
            raise error

    return work


@pytest.mark.parametrize("error", [SystemExit(143), SystemExit(130), InputError("no file"),
                                   NonFiniteError("loss nan"), ValueError("a bug"), None])
def test_the_process_that_reports_raises_what_came(
    error: BaseException | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if error is None:
        _run(ends(error), reports=True, is_child=False)
    else:
        with pytest.raises(type(error)) as met:
            _run(ends(error), reports=True, is_child=False)
        assert met.value is error
    assert capsys.readouterr().out == "from work\n"


@pytest.mark.parametrize(("error", "code"), [
    (SystemExit(143), 143), (SystemExit(130), 130), (InputError("no file"), 2),
    (NonFiniteError("loss nan"), 3)])
def test_a_worker_of_torchrun_ends_alike_and_says_nothing(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as met:
        _run(ends(error), reports=False, is_child=False)
    assert met.value.code == code
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [SystemExit(143), SystemExit(130), InputError("no file"),
                                   NonFiniteError("loss nan"), None])
def test_a_child_leaves_what_is_foreseen_to_its_parent(error: BaseException | None) -> None:
    # Any other exit code than 0 would make the parent kill itself before it has reported.
    _run(ends(error), reports=False, is_child=True)


@pytest.mark.parametrize("error", [ValueError("a bug"), SystemExit(1)])
def test_a_child_that_fails_alone_says_so(error: BaseException) -> None:
    with pytest.raises(type(error)):
        _run(ends(error), reports=False, is_child=True)
