"""The runs of a trial, and the runs that they continue.

A trial has one run, unless population-based training replaces it by a continuation of another trial's run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from distvae.runs.records import EpochRecord, read_metrics
from distvae.sweeps.space import Value
from distvae.system.files import damaged, read_as, write_json
from distvae.system.settings import Count

_FORMAT = "the lineage of a run"


@dataclass(frozen=True)
class Generation:
    """A run of a trial: its first one, or one that continues another trial's run from a checkpoint."""

    run: Path
    parent: Path | None = None
    step: int = 0  # of the parent's checkpoint
    values: dict[str, Value] | None = None  # swept values since then


def generations(folder: Path, number: int) -> list[Generation]:
    """Return the runs of a trial, oldest first, with paths in the sweep folder as it is now.

    Raises:
        UserError: a ``lineage.json`` is damaged.
    """
    first = folder / "trials" / f"{number:04d}"
    found = [Generation(first)] if first.is_dir() else []
    later = [path for path in first.parent.glob(f"{first.name}.*") if path.suffix[1:].isdecimal()]
    for path in sorted(later, key=lambda path: int(path.suffix[1:])):
        if not os.path.lexists(path / "lineage.json"):
            continue  # not started yet
        lineage = read_as(_Lineage, path / "lineage.json", _FORMAT)
        parent = folder / "trials" / lineage.parent
        if lineage.parent != parent.name:
            raise damaged(path / "lineage.json", _FORMAT, f"{lineage.parent!r} is not the name of a run")
        found.append(Generation(path, parent, lineage.step, lineage.values))
    return found


@dataclass(frozen=True)
class _Lineage:
    """The content of ``lineage.json``."""

    parent: str  # the name of its folder
    step: Count
    values: dict[str, Value] | None


def save_lineage(generation: Generation) -> None:
    """Write the ``lineage.json`` of a run that continues another one.

    Raises:
        ValueError: the run has no parent.
    """
    if generation.parent is None:
        raise ValueError(f"{generation.run}: continues no other run")
    content = {"parent": generation.parent.name, "step": generation.step, "values": generation.values}
    generation.run.mkdir(parents=True, exist_ok=True)
    write_json(generation.run / "lineage.json", content)


def ancestry(folder: Path, run: Path) -> list[Generation]:
    """Return a run and the runs that it continues, newest first.

    Raises:
        UserError: a ``lineage.json`` names a run that does not exist, or one of its own descendants.
    """
    found: list[Generation] = []
    while True:
        number = int(run.name.partition(".")[0])
        own = next((g for g in generations(folder, number) if g.run.name == run.name), Generation(run))
        found.append(own)
        if own.parent is None:
            return found
        run = own.parent
        if run.name in {generation.run.name for generation in found} or not run.is_dir():
            raise damaged(own.run / "lineage.json", _FORMAT, f"{run.name} is not an earlier run")


def first_trial(folder: Path, run: Path) -> int:
    """Return the number of the trial that the ancestry of a run begins with."""
    return int(ancestry(folder, run)[-1].run.name)


def history(folder: Path, run: Path) -> list[EpochRecord]:
    """Return the records of a run, after those of the runs that it continues up to where it continues them."""
    rows: list[EpochRecord] = []
    for generation in reversed(ancestry(folder, run)):
        rows = [row for row in rows if row.step <= generation.step] + read_metrics(generation.run)
    return rows
