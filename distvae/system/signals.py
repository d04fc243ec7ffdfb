"""Signals that ask a program to stop."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

# The exit code of a run that was interrupted and can go on: «temporary failure» of sysexits.h.
INTERRUPTED = 75

# The exit code of a program that SIGINT ended at once, as shells give it.
ENDED = 128 + signal.SIGINT
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)

_PR_SET_PDEATHSIG = 1


def asking() -> list[signal.Signals]:
    """The signals that ask this process to stop: all of these, but SIGHUP under nohup."""
    return [s for s in SIGNALS if s != signal.SIGHUP or signal.getsignal(s) is not signal.SIG_IGN]


class InterruptedRun(Exception):  # noqa: N818
    """The run was asked to stop; all ranks know, and all is saved that can be."""


class Signals:
    """The signals of this process. Until ``deferred`` there is nothing to save, and the first one ends it at once."""

    def __init__(self) -> None:
        self.asked: str | None = None  # the first signal that asked to stop
        self._deferred = False
        self._former: dict[int, Callable[[int, FrameType | None], Any] | int] = {}

    def install(self) -> None:
        """Take over SIGTERM, SIGUSR1, SIGINT and SIGHUP, also those that wait, and hear of a launcher's end."""
        for number in asking():
            former = signal.signal(number, self._take)
            if former is not None:  # Python cannot put back what C code installed
                self._former[number] = former
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        _end_with_launcher()

    def restore(self) -> None:
        """Give the signals back to whom they belonged."""
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a signal is only noted; a second SIGINT ends the process at once all the same."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _take(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        # One that comes while the process ends by an earlier one changes nothing.
        again, ending = number == signal.SIGINT and self.asked == name, self.asked is not None
        self.asked = self.asked or name
        if again or not (self._deferred or ending):
            raise KeyboardInterrupt(name)


def _end_with_launcher() -> None:
    """Have this process told to stop when the launcher that started it dies, so that none trains on alone."""
    if not {"ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"} & os.environ.keys():
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    # It may have died before; then the system's first process, which is no Python, is the parent.
    if os.getppid() == 1 and not _first_is_python():
        raise KeyboardInterrupt("the launcher has gone")


def _first_is_python() -> bool:
    try:
        return Path(os.readlink("/proc/1/exe")).name.startswith("python")
    except PermissionError:  # it is another user's
        return False
