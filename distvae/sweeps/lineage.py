"""The runs of a trial, and the runs that they continue (population-based training)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distvae.runs.tracking import read_metrics
from distvae.sweeps.space import Value
from distvae.system.files import damaged, read_as, write_json
from distvae.system.settings import Count


@dataclass(frozen=True)
class Generation:
    """A run of a trial: its first, or one that population-based training had go on from another trial's."""

    run: Path
    parent: Path | None = None
    step: int = 0  # of the parent, from which on it went on
    values: dict[str, Value] | None = None  # as they were changed to


def generations(folder: Path, number: int) -> list[Generation]:
    """A trial's runs, the first one first. Paths are where the sweep lies now."""
    first = folder / "trials" / f"{number:04d}"
    found = [Generation(first)] if first.is_dir() else []
    later = [path for path in first.parent.glob(f"{first.name}.*") if path.suffix[1:].isdecimal()]
    for path in sorted(later, key=lambda path: int(path.suffix[1:])):
        if not os.path.lexists(path / "lineage.json"):
            continue  # it has not begun
        told = read_as(_Lineage, path / "lineage.json", "what a run goes on from")
        parent = folder / "trials" / told.parent
        if told.parent != parent.name:
            raise damaged(path / "lineage.json", "what a run goes on from", f"{told.parent!r} is no name of a run")
        found.append(Generation(path, parent, told.step, told.values))
    return found


@dataclass(frozen=True)
class _Lineage:
    """``lineage.json``."""

    parent: str  # the name of its folder
    step: Count
    values: dict[str, Value] | None


def save_lineage(generation: Generation) -> None:
    """Note where a run goes on from."""
    content = {"parent": generation.parent.name, "step": generation.step, "values": generation.values}
    generation.run.mkdir(parents=True, exist_ok=True)
    write_json(generation.run / "lineage.json", content)


def ancestry(folder: Path, run: Path) -> list[Generation]:
    """A run and those that it continues, the newest first.

    Raises:
        UserError: a lineage leads to no run before it.
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
            raise damaged(own.run / "lineage.json", "what a run goes on from", f"{run.name} is no run before it")


def first_trial(folder: Path, run: Path) -> int:
    """The number of the trial whose first run this one continues, by way of all between."""
    return int(ancestry(folder, run)[-1].run.name)


def history(folder: Path, run: Path) -> list[dict[str, Any]]:
    """The records of a run and of those that it continues, as one."""
    rows: list[dict[str, Any]] = []
    for generation in reversed(ancestry(folder, run)):
        rows = [row for row in rows if row["step"] <= generation.step] + read_metrics(generation.run)
    return rows
