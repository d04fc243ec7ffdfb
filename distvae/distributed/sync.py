"""Rank synchronisation: all ranks agree on whether to stop or to save, at the same step.

A signal handler only sets a flag. About once a second all ranks combine their flags and act on the result. So they save
the same step, and no rank waits in a collective for one that has left.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from distvae.distributed.runtime import Runtime
from distvae.system.signals import Signals

# Target seconds between two syncs, and the most steps between them. Each sync waits for the device and the other ranks.
SYNC_SECONDS, SYNC_STEPS = 1.0, 50


@dataclass(frozen=True)
class Agreement:
    """What all ranks know after a sync."""

    stop: bool  # a signal has reached one of them
    overtaken: bool  # another attempt has taken over the run
    failed: bool  # a write has failed
    save: bool  # a checkpoint is due
    bad_step: int | None  # the first step whose loss or gradient was not finite


class RankSync:
    """Synchronises all ranks at the same step, about once a second.

    Every rank calls ``due`` after every step, and ``sync`` whenever it returns True.
    """

    def __init__(self, runtime: Runtime, signals: Signals):
        self._runtime, self._signals = runtime, signals
        self.reset_pace()

    def reset_pace(self) -> None:
        """Measure the pace again, because steps of another kind begin."""
        self._every, self._count, self._synced = 1, 0, time.monotonic()

    def due(self) -> bool:
        """Count a step. Returns whether to sync after it."""
        self._count += 1
        return self._count >= self._every

    def sync(
        self, bad_step: torch.Tensor, overtaken: bool = False, failed: bool = False, save: bool = False
    ) -> Agreement:
        """Combine what each rank knows: one collective. Waits for the device.

        Args:
            bad_step: the first step that was not finite, a float64 scalar on the device; infinite if there is none.
        """
        now = time.monotonic()
        seconds = (now - self._synced) / max(self._count, 1)
        own = [self._signals.asked is not None, overtaken, failed, save, seconds]
        values = torch.cat([torch.tensor(own, dtype=torch.float64, device=bad_step.device), -bad_step[None]])
        stop, overtaken, failed, save, seconds, bad = self._runtime.max(values).tolist()
        self._count, self._synced = 0, now
        self._every = max(1, min(SYNC_STEPS, int(SYNC_SECONDS / max(seconds, 1e-9))))
        return Agreement(stop > 0, overtaken > 0, failed > 0, save > 0, None if bad == -torch.inf else int(-bad))
