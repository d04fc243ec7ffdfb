"""What asks a run to stop, and when its ranks look up together to see whether anything does.

A signal handler only sets a flag. Every second or so all ranks put their flags together, at the same step on each, and
all act on what they then know: so they save the same step, and none is left waiting for one that has gone."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from distvae.distributed.runtime import Runtime
from distvae.system.signals import Signals

# Seconds from one look to the next, and the most steps: each look waits for the device, and for the other ranks.
LOOK_SECONDS, LOOK_STEPS = 1.0, 50


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
