"""SIGTERM and SIGINT: the first asks to stop at the next safe point, the second stops at once.

Of several processes one may be signalled alone. They must stop after the same step, or one waits
for the others for ever: what counts then is what they have told each other.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Ctrl-C reaches torchrun and its workers, to whom torchrun passes it on: that is one signal.
PASSED_ON_SECONDS = 3.0


class StopSignals:
    """Handlers of both signals inside a `with` block; the exit code is 128 plus the signal.

    Attributes:
        received: The first signal to this process, None before one.
        agreed: What all of several processes have heard of and stop for; None before that.
        several: Whether there are several, so that `agreed` counts and not `received`.
        deferred: Whether someone calls `check` at safe points; otherwise the first signal ends the
            program where it stands.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.agreed: int | None = None
        self.several = False
        self.deferred = False
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        if _in_main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def install(self) -> None:
        """Sets the handlers (again); other threads than the main one may not."""
        if _in_main_thread():
            for number in SIGNALS:
                signal.signal(number, self._handle)

    @property
    def asked(self) -> int | None:
        """The signal to stop for, None without one."""
        return self.agreed if self.several else self.received

    @property
    def heard(self) -> list[bool]:
        """For each of `SIGNALS` whether it is the one received."""
        return [self.received == number for number in SIGNALS]

    def agree(self, heard: Sequence[float]) -> None:
        """Takes up how many processes have heard each of `SIGNALS`."""
        asked = [number for number, count in zip(SIGNALS, heard, strict=True) if count]
        self.agreed = next(iter(asked), None)

    def check(self) -> None:
        """Ends the program if it was asked to stop.

        Raises:
            SystemExit: With 143 after SIGTERM, 130 after SIGINT.
        """
        if self.asked is not None:
            raise SystemExit(128 + self.asked)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if self.several and time.monotonic() - self._since < PASSED_ON_SECONDS:
                return
            os._exit(128 + number)
        self.received, self._since = number, time.monotonic()
        # Not print: a handler may interrupt one that is writing.
        word = "stopping after this step" if self.deferred else "stopping"
        name = signal.Signals(number).name
        os.write(2, f"{name}: {word}; a second signal ends at once\n".encode())
        if not self.deferred:
            raise SystemExit(128 + number)


def ignore_in_worker(_: int) -> None:
    """For data loaders: a signal to the whole process group is the training process's to answer."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
