"""The first signal waits for a safe point, the second does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

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
