"""Progress of a sweep and of its trials: ``sweep.json`` and ``trials.json``."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from distvae.runs.tracking import Seconds
from distvae.sweeps.space import Value
from distvae.system.files import damaged, read_as, write_json
from distvae.system.settings import Count

State = Literal["waiting", "running", "finished", "stopped", "failed"]


@dataclass
class Trial:
    """A trial as the sweep's ``trials.json`` tells of it. ``stopped``: before its end, by scheduler or clock."""

    number: Count
    values: dict[str, Value]
    state: State = "waiting"
    reason: str | None = None  # why it failed or was stopped
    node: str | None = None  # where it ran last
    begun: float | None = None  # seconds since 1970
    seconds: Seconds = 0.0  # that it has held its resources, all starts together
    starts: Count = 0

    @property
    def well(self) -> bool:
        """Whether it has ended, and not failed."""
        return self.state in ("finished", "stopped")

    @property
    def ended(self) -> bool:
        return self.well or self.state == "failed"


@dataclass
class SweepProgress:
    """How a sweep stands: its ``sweep.json``. Seconds are those of the clock, all starts together."""

    state: Literal["running", "finished", "interrupted", "failed"] = "running"
    reason: str | None = None
    begun: float = 0.0  # seconds since 1970
    starts: Count = 0
    seconds: Seconds = 0.0
    pretraining_seconds: Seconds = 0.0
    trial_seconds: Seconds = 0.0  # while trials ran
    finalist_seconds: Seconds = 0.0
    place_seconds: Seconds = 0.0  # of all places for trials together, while trials ran: their number may change
    slots: Count = 0  # places at the last start: trials that there was room for, side by side
    nodes: tuple[str, ...] = ()
    ended_by: str | None = None  # what of `stop` ended it before its trials had
    data: str | None = None  # fingerprint of the sentences; None: of an older version, or of trials that have their own


def save_progress(folder: Path, progress: SweepProgress) -> None:
    """Write ``sweep.json``."""
    write_json(folder / "sweep.json", asdict(progress))


def load_progress(folder: Path) -> SweepProgress:
    """How a sweep stands; as new where nothing is told.

    Raises:
        UserError: ``sweep.json`` is not what a sweep writes.
    """
    path = folder / "sweep.json"
    if not os.path.lexists(path):
        return SweepProgress()
    return read_as(SweepProgress, path, "what a sweep writes")


def save_trials(folder: Path, trials: list[Trial]) -> None:
    """Write ``trials.json``."""
    write_json(folder / "trials.json", {"trials": [asdict(trial) for trial in trials]})


def load_trials(folder: Path) -> list[Trial]:
    """The trials of a sweep, in the order of their numbers.

    Raises:
        UserError: ``trials.json`` is not what a sweep writes.
    """
    path = folder / "trials.json"
    if not os.path.lexists(path):
        return []
    found = read_as(_Trials, path, "a sweep's trials").trials
    if [trial.number for trial in found] != sorted({trial.number for trial in found}):
        raise damaged(path, "a sweep's trials", "their numbers do not rise")
    return found


@dataclass(frozen=True)
class _Trials:
    """``trials.json``."""

    trials: list[Trial]
