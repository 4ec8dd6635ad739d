"""The first signal waits for a safe point, the second does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from moe import interrupt
from moe.interrupt import StopSignals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_deferred_signal_ends_at_the_next_check(
    capfd: pytest.CaptureFixture[str], number: signal.Signals, code: int
) -> None:
    with StopSignals() as stop:
        stop.deferred = True
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.received == number
        with pytest.raises(SystemExit) as ended:
            stop.check()
    assert ended.value.code == code
    assert f"{number.name}: stopping after this step" in capfd.readouterr().err


def test_before_training_it_ends_at_once() -> None:
    with pytest.raises(SystemExit) as ended, StopSignals():
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on")
    assert ended.value.code == 143


def test_the_handlers_before_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_signal_ends_a_process_that_never_checks() -> None:
    program = (
        "import os, signal, time\nfrom moe.interrupt import StopSignals\n"
        "with StopSignals() as stop:\n"
        "    stop.deferred = True\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30)
    assert done.returncode == 130, done.stderr


def test_of_several_processes_none_stops_before_all_have_heard() -> None:
    with StopSignals() as stop:
        stop.deferred = stop.several = True
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.heard == [False, True]
        stop.check()  # the others do not know yet
        stop.agree([0.0, 1.0])
        with pytest.raises(SystemExit) as ended:
            stop.check()
    assert ended.value.code == 130


@pytest.mark.parametrize(("heard", "asked"), [
    ([0, 0], None), ([1, 0], signal.SIGTERM), ([0, 2], signal.SIGINT), ([1, 1], signal.SIGTERM)])
def test_a_process_that_heard_nothing_stops_with_the_others(
    heard: list[int], asked: signal.Signals | None
) -> None:
    stop = StopSignals()
    stop.several = True
    stop.agree(heard)
    assert stop.asked == asked and stop.received is None


def test_one_signal_ends_at_once_outside_training_also_of_several() -> None:
    with pytest.raises(SystemExit) as ended, StopSignals() as stop:
        stop.several = True
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on")
    assert ended.value.code == 143


def test_of_several_processes_a_signal_may_come_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with StopSignals() as stop:
        stop.deferred = stop.several = True
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # as torchrun passes it on
        assert stop.received == signal.SIGINT and ended == []
        monkeypatch.setattr(interrupt, "PASSED_ON_SECONDS", 0.0)
        os.kill(os.getpid(), signal.SIGINT)
        assert ended == [130]
