"""Signals that tell a program to stop."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

# Exit code of a run that was interrupted and can be resumed: EX_TEMPFAIL of sysexits.h.
INTERRUPTED = 75

# Exit code of a program that SIGINT ended at once, as shells report it.
ENDED = 128 + signal.SIGINT
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)

_PR_SET_PDEATHSIG = 1

# The parent when the program began: 1 in a container whose first process starts it.
_PARENT = os.getppid()


def asking() -> list[signal.Signals]:
    """Return the signals that tell this process to stop: ``SIGNALS``, without SIGHUP under nohup."""
    return [s for s in SIGNALS if s != signal.SIGHUP or signal.getsignal(s) is not signal.SIG_IGN]


class InterruptedRun(Exception):  # noqa: N818
    """The run was told to stop. All ranks know, and everything that can be saved is saved."""


class Signals:
    """Handlers of the signals that tell this process to stop.

    Outside ``deferred`` there is nothing to save, and a signal raises ``KeyboardInterrupt`` at once.
    """

    def __init__(self) -> None:
        self.asked: str | None = None  # name of the first signal received
        self._deferred = False
        self._raised: str | None = None  # name of the last signal that raised
        self._former: dict[int, Callable[[int, FrameType | None], Any] | int] = {}

    def install(self) -> None:
        """Install the handlers, unblock the signals, and have SIGTERM sent when the launcher dies."""
        for number in asking():
            former = signal.signal(number, self._take)
            if former is not None:  # installed by C code before Python started
                self._former[number] = former
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        _end_with_launcher()

    def restore(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block, only record a signal in ``asked``; a second SIGINT still raises at once."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Raise a signal's ``KeyboardInterrupt`` again, if C code in the block turned it into an error of its own."""
        try:
            yield
        except Exception as error:
            if self._raised is None:
                raise
            raise KeyboardInterrupt(self._raised) from error

    def _take(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        # Ignore a signal that arrives while the process is ending because of an earlier one.
        again, ending = number == signal.SIGINT and self.asked == name, self.asked is not None
        self.asked = self.asked or name
        if again or not (self._deferred or ending):
            self._raised = name
            raise KeyboardInterrupt(name)


def _end_with_launcher() -> None:
    """Have SIGTERM sent to this process when its launcher dies, so that no process continues alone."""
    if not {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & os.environ.keys():
        return
    signal_of_parents_death(signal.SIGTERM)
    if os.getppid() == 1 and _PARENT != 1:  # it has died already
        raise KeyboardInterrupt("the launcher has gone")


def signal_of_parents_death(number: signal.Signals) -> None:
    """Have a signal sent to this process when its parent dies."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
