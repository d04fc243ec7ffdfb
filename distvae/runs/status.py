"""Whether a run is running, finished, interrupted or failed: status.json."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from distvae.evaluation.liveness import Latent
from distvae.system.errors import UserError, one_line
from distvae.system.files import read_as, write_json

State = Literal["running", "finished", "interrupted", "failed"]


@dataclass(frozen=True)
class Status:
    """Contents of a run's ``status.json``."""

    state: State
    reason: str | None
    time: str
    start: int | None  # number of the attempt
    latent: Latent | None = None  # by the last scores; None: older version, or too few sentences to judge


def write_status(
    run: Path, state: State, reason: str | None = None, start: int | None = None, latent: Latent | None = None
) -> None:
    """Write ``run/status.json``: the state of the run, the reason, and its latent.

    Launchers hide the exit code of the program; this file shows how it ended.
    """
    run.mkdir(parents=True, exist_ok=True)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_json(run / "status.json", asdict(Status(state, reason and one_line(reason), now, start, latent)))


def read_status(run: Path) -> Status:
    """Read a run's ``status.json``.

    Raises:
        UserError: the file cannot be read, or has another form.
    """
    return read_as(Status, run / "status.json", "the status of a run")


def is_running(run: Path) -> bool:
    """Return whether a run's ``status.json`` says that it is running."""
    with contextlib.suppress(UserError):
        return read_status(run).state == "running"
    return False


def end_status(run: Path, start: int | None, latent: Latent | None) -> Status:
    """Return the status of a finished run. Write it first if the process was killed before it could."""
    with contextlib.suppress(UserError):
        status = read_status(run)
        if status.state == "finished":
            return status
    write_status(run, "finished", start=start, latent=latent)
    return read_status(run)
