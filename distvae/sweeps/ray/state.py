"""The state of a sweep that this process runs: its records, its trials and the time that it takes."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from distvae.runs.attempts import Lease
from distvae.sweeps import lineage, ranking
from distvae.sweeps.progress import SweepProgress, Trial, load_progress, load_trials, save_progress, save_trials
from distvae.sweeps.ranking import Outcome
from distvae.sweeps.ray import stop_file
from distvae.sweeps.ray.signals import StopSignals
from distvae.sweeps.sweep import Sweep
from distvae.system.files import writing
from distvae.system.plural import counted

# Seconds that trials have to save themselves when a sweep is interrupted: Slurm may allow 30 in all (`KillWait`).
SECONDS_TO_SAVE = 20.0

# Seconds between saves of the sweep's time, and the most that a killed driver loses of it.
_SECONDS_UNSAVED = 60.0

Part = Literal["pretraining_seconds", "trial_seconds", "finalist_seconds"]


class SweepState:
    """A sweep and its records, which only the process that holds the lease writes.

    Args:
        sweep: the sweep as it was asked for; the driver fits it to the cluster once its folder is open.
        lease: this process's lease on the sweep's folder.
        signals: the signals that ask this process to stop.
        began: monotonic time at which this attempt began.
    """

    def __init__(self, sweep: Sweep, lease: Lease, signals: StopSignals, began: float):
        self.sweep, self.lease, self.signals = sweep, lease, signals
        self.progress: SweepProgress = load_progress(sweep.folder)
        self.trials: dict[int, Trial] = {trial.number: trial for trial in load_trials(sweep.folder)}
        self.running: set[int] = set()
        # Why the sweep ends before all trials have.
        self.ended_by: str | None = self.progress.ended_by
        # Whether Tune has been told to save its state and end: what it reports of trials then is not their end.
        self.interrupted = False
        self._began, self._seconds_before = began, self.progress.seconds
        self._save_deadline = math.inf
        self._part: Part = "trial_seconds"
        self._counted = self._saved = 0.0  # monotonic times
        self._outcomes: dict[int, Outcome | None] = {}

    @property
    def folder(self) -> Path:
        return self.sweep.folder

    @property
    def succeeded(self) -> bool:
        """Whether at least one trial has ended well."""
        return any(trial.well for trial in self.trials.values())

    def elapsed(self) -> float:
        """Seconds of the sweep over all attempts."""
        return self._seconds_before + time.monotonic() - self._began

    def check_limits(self) -> None:
        """End the sweep when a limit of ``stop`` is reached."""
        limits = self.sweep.config.stop
        if limits.hours is not None and self.elapsed() > limits.hours * 3600:
            self.ended_by = self.ended_by or f"stop.hours = {limits.hours:g} have passed"
        failed = sum(trial.state == "failed" for trial in self.trials.values())
        if limits.failed is not None and failed >= limits.failed:
            trials = f"{counted(failed, 'trial')} {'has' if failed == 1 else 'have'} failed"
            self.ended_by = self.ended_by or f"{trials}, stop.failed = {limits.failed}"

    def request_save(self) -> float:
        """Ask running trials to save themselves, once. Return the monotonic time until which to wait for them."""
        if self.lease.lost:
            return time.monotonic()
        if math.isinf(self._save_deadline):
            self._save_deadline = time.monotonic() + SECONDS_TO_SAVE
            stop_file.request_stop(self.folder, str(self.signals.received))
        return self._save_deadline

    def outcomes(self) -> dict[int, Outcome]:
        """Outcomes of the trials that ended well, by number. Each is read once, because it no longer changes."""
        for number, trial in self.trials.items():
            runs = lineage.generations(self.folder, number) if trial.well and number not in self._outcomes else []
            if runs:
                config = self.sweep.config_of(trial.values, runs[-1].run)
                self._outcomes[number] = ranking.outcome(config, lineage.history(self.folder, runs[-1].run))
        return {number: found for number, found in self._outcomes.items() if found is not None}

    @contextlib.contextmanager
    def timed(self, part: Part) -> Iterator[None]:
        """Count the time of the block as that part of the sweep's time."""
        self._part, self._counted = part, time.monotonic()
        try:
            yield
        finally:
            self._add_time()

    def count_time(self) -> None:
        """Add the time since the last call, and save it regularly."""
        self._add_time()
        if self._counted - self._saved >= _SECONDS_UNSAVED:
            self.save()

    def _add_time(self) -> None:
        now = time.monotonic()
        passed = now - self._counted
        self._counted = now
        setattr(self.progress, self._part, getattr(self.progress, self._part) + passed)
        if self._part == "trial_seconds":
            self.progress.place_seconds += passed * self.progress.slots
            for number in self.running:
                self.trials[number].seconds += passed

    def save(self) -> None:
        """Write ``sweep.json`` and ``trials.json``.

        Raises:
            SupersededError: another process runs the sweep now.
        """
        self._saved = time.monotonic()
        self.lease.check()
        self.progress.seconds = self.elapsed()
        with writing(self.folder):
            save_progress(self.folder, self.progress)
            save_trials(self.folder, [self.trials[number] for number in sorted(self.trials)])
