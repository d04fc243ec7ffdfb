"""What asks a run to stop, and when its ranks look up together to see whether anything does.

A signal handler only sets a flag. Every second or so all ranks put their flags together, at the same step on each, and
all act on what they then know: so they save the same step, and none is left waiting for one that has gone.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from distvae.runtime import Runtime

# The exit code of a run that was interrupted and can go on: «temporary failure» of sysexits.h.
INTERRUPTED = 75

# The exit code of a program that SIGINT ended at once, as shells give it.
ENDED = 128 + signal.SIGINT

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)

# Seconds from one look to the next, and the most steps: each look waits for the device, and for the other ranks.
LOOK_SECONDS, LOOK_STEPS = 1.0, 50

_PR_SET_PDEATHSIG = 1


def asking() -> list[signal.Signals]:
    """The signals that ask this process to stop: all of these, but SIGHUP under nohup."""
    return [s for s in SIGNALS if s != signal.SIGHUP or signal.getsignal(s) is not signal.SIG_IGN]


class InterruptedRun(Exception):  # noqa: N818
    """The run was asked to stop; all ranks know, and all is saved that can be."""


class Signals:
    """The signals of this process. Until ``deferred`` there is nothing to save, and the first one ends it at once."""

    def __init__(self):
        self.asked: str | None = None  # the first signal that asked to stop
        self._deferred = False
        self._former: dict[int, object] = {}

    def install(self) -> None:
        """Take over SIGTERM, SIGUSR1, SIGINT and SIGHUP, also those that wait, and hear of a launcher's end."""
        for number in asking():
            self._former[number] = signal.signal(number, self._take)
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

    def _take(self, number: int, frame) -> None:
        name = signal.Signals(number).name
        # One that comes while the process ends by an earlier one changes nothing.
        again, ending = number == signal.SIGINT and self.asked == name, self.asked is not None
        self.asked = self.asked or name
        if again or not (self._deferred or ending):
            raise KeyboardInterrupt(name)


@dataclass(frozen=True)
class Look:
    """What all ranks know after they have looked up together."""

    stop: bool  # a signal has reached one of them
    overtaken: bool  # another start goes on with the run
    failed: bool  # something could not be written
    save: bool  # the time for a checkpoint has come
    bad_step: int | None  # the first whose loss or gradient was not finite


class Looks:
    """Lets all ranks look up together at the same step, about once a second.

    Every rank calls ``due`` as often as every other, and ``look`` whenever it says so.
    """

    def __init__(self, runtime: Runtime, signals: Signals):
        self._runtime, self._signals = runtime, signals
        self.pace()

    def pace(self) -> None:
        """Find the pace anew, for steps of another kind begin."""
        self._every, self._count, self._looked = 1, 0, time.monotonic()

    def due(self) -> bool:
        """After a step: whether it is time to look."""
        self._count += 1
        return self._count >= self._every

    def look(self, bad_step: torch.Tensor, overtaken: bool = False, failed: bool = False, save: bool = False) -> Look:
        """Put together what each rank knows: one collective. Waits for the device.

        Args:
            bad_step: the first step that was not finite, float64 on the device; infinite where there is none.
        """
        now = time.monotonic()
        seconds = (now - self._looked) / max(self._count, 1)
        own = [self._signals.asked is not None, overtaken, failed, save, seconds]
        values = torch.cat([torch.tensor(own, dtype=torch.float64, device=bad_step.device), -bad_step[None]])
        stop, overtaken, failed, save, seconds, bad = self._runtime.max(values).tolist()
        self._count, self._looked = 0, now
        self._every = max(1, min(LOOK_STEPS, int(LOOK_SECONDS / max(seconds, 1e-9))))
        return Look(stop > 0, overtaken > 0, failed > 0, save > 0, None if bad == -torch.inf else int(-bad))


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
