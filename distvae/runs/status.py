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
    """What a run's ``status.json`` holds."""

    state: State
    reason: str | None
    time: str
    start: int | None  # number of the attempt
    latent: Latent | None = None  # by the last scores; None: of an older version, or too few sentences to judge it by


def write_status(
    run: Path, state: State, reason: str | None = None, start: int | None = None, latent: Latent | None = None
) -> None:
    """Write ``run/status.json``: whether the run is running, finished, interrupted or failed, why, and its latent.

    Launchers hide a program's exit code; this file does not.
    """
    run.mkdir(parents=True, exist_ok=True)
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    write_json(run / "status.json", asdict(Status(state, reason and one_line(reason), now, start, latent)))


def read_status(run: Path) -> Status:
    """Read a run's ``status.json``.

    Raises:
        UserError: it cannot be read, or is not what a run writes.
    """
    return read_as(Status, run / "status.json", "the status of a run")


def end_status(run: Path, start: int | None, latent: Latent | None) -> Status:
    """Return a finished run's status, written first where its process was killed between its last files."""
    with contextlib.suppress(UserError):
        status = read_status(run)
        if status.state == "finished":
            return status
    write_status(run, "finished", start=start, latent=latent)
    return read_status(run)
