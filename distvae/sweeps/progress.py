"""Progress of a sweep and of its trials: ``sweep.json`` and ``trials.json``."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from distvae.runs.records import Seconds
from distvae.sweeps.space import Value
from distvae.system.files import damaged, read_as, write_json
from distvae.system.settings import Count

# `stopped`: ended early by the scheduler or by `stop`.
State = Literal["waiting", "running", "finished", "stopped", "failed"]


@dataclass
class Trial:
    """A trial in ``trials.json``."""

    number: Count
    values: dict[str, Value]
    state: State = "waiting"
    reason: str | None = None  # why it failed or was stopped
    node: str | None = None  # where it ran last
    begun: float | None = None  # seconds since 1970
    seconds: Seconds = 0.0  # for which it held its resources, over all attempts
    starts: Count = 0

    @property
    def well(self) -> bool:
        """Whether the trial ended without failing."""
        return self.state in ("finished", "stopped")

    @property
    def ended(self) -> bool:
        return self.well or self.state == "failed"


@dataclass
class SweepProgress:
    """The content of ``sweep.json``. Times are wall-clock seconds, over all attempts."""

    state: Literal["running", "finished", "interrupted", "failed"] = "running"
    reason: str | None = None
    begun: float = 0.0  # seconds since 1970
    starts: Count = 0
    seconds: Seconds = 0.0
    pretraining_seconds: Seconds = 0.0
    trial_seconds: Seconds = 0.0  # while trials ran
    finalist_seconds: Seconds = 0.0
    place_seconds: Seconds = 0.0  # while trials ran, summed over the slots, whose number may change
    slots: Count = 0  # number of trials that the last attempt could run at once
    nodes: tuple[str, ...] = ()
    ended_by: str | None = None  # the limit of `stop` that ended the sweep early
    data: str | None = None  # fingerprint of the sentences; None: older version, or the trials differ in their data


def save_progress(folder: Path, progress: SweepProgress) -> None:
    """Write ``sweep.json``."""
    write_json(folder / "sweep.json", asdict(progress))


def load_progress(folder: Path) -> SweepProgress:
    """Read ``sweep.json``. Without the file, return the progress of a new sweep.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / "sweep.json"
    if not os.path.lexists(path):
        return SweepProgress()
    return read_as(SweepProgress, path, "the progress of a sweep")


def save_trials(folder: Path, trials: list[Trial]) -> None:
    """Write ``trials.json``."""
    write_json(folder / "trials.json", {"trials": [asdict(trial) for trial in trials]})


def load_trials(folder: Path) -> list[Trial]:
    """Read ``trials.json``, sorted by number. Without the file, return an empty list.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / "trials.json"
    if not os.path.lexists(path):
        return []
    found = read_as(_Trials, path, "a list of trials").trials
    if [trial.number for trial in found] != sorted({trial.number for trial in found}):
        raise damaged(path, "a list of trials", "their numbers should increase")
    return found


@dataclass(frozen=True)
class _Trials:
    """The content of ``trials.json``."""

    trials: list[Trial]
