"""Read a sweep folder: its trials in their order, and their scores.

The folder may have moved, and trials may be running, waiting or failed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from distvae.runs.records import EpochRecord, read_metrics
from distvae.runs.results import Results, results_from_dict
from distvae.sweeps.lineage import Generation, generations, history
from distvae.sweeps.progress import SweepProgress, Trial, load_progress, load_trials
from distvae.sweeps.ranking import Outcome, front, kept, outcome, rank
from distvae.sweeps.storage import open_sweep
from distvae.sweeps.sweep import Sweep
from distvae.system.files import damaged, read_json


@dataclass(frozen=True)
class TrialRecord:
    """A trial, and the records of its runs."""

    trial: Trial
    generations: list[Generation]
    rows: list[EpochRecord]  # of its last run, and of the runs that it continues
    own: list[EpochRecord]  # of all its own runs
    finalist: dict[str, Results]  # by split, scored again with more importance samples; empty if not a finalist

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def fine(self) -> bool:
        """Whether the trial meets the constraints of the sweep."""
        return False

    @property
    def judged(self) -> bool:
        """Whether the trial has ended without failing and can be ranked."""
        return False

    @property
    def epochs(self) -> int:
        """Number of epochs of the VAE, including those of the runs that it continues."""
        return max((row.epoch for row in self.rows if row.stage == "train"), default=0)


@dataclass(frozen=True)
class ScoredTrial(TrialRecord):
    """A trial whose VAE has recorded an epoch."""

    outcome: Outcome
    off: float  # nats by which the KL is outside its tolerance
    shortcomings: str  # the constraints that it misses; empty if none

    @property
    def within(self) -> bool:
        """Whether the KL is within its tolerance."""
        return self.off == 0

    @property
    def fine(self) -> bool:
        return self.shortcomings == ""

    @property
    def judged(self) -> bool:
        return self.trial.well


@dataclass(frozen=True)
class Account:
    """The content of a sweep folder."""

    folder: Path
    sweep: Sweep
    progress: SweepProgress
    entries: list[TrialRecord]  # best first, then those that cannot be ranked, by number
    ranks: dict[int, int]  # from 1, by trial number
    front: list[int]  # numbers of the trials on the Pareto front of two objectives
    pretrainings: dict[str, list[EpochRecord]]  # records of shared pretrainings, by fingerprint

    @property
    def scored(self) -> list[ScoredTrial]:
        return [entry for entry in self.entries if isinstance(entry, ScoredTrial)]

    @property
    def judged(self) -> list[ScoredTrial]:
        return [entry for entry in self.scored if entry.judged]

    @property
    def best(self) -> ScoredTrial | None:
        return next(iter(self.judged), None)


def gather(folder: str | Path) -> Account:
    """Read a sweep folder.

    Raises:
        UserError: it is not a sweep folder, or a file in it is damaged.
    """
    folder = Path(folder)
    sweep = open_sweep(folder)
    entries = {trial.number: read_trial(folder, sweep, trial) for trial in load_trials(folder)}
    outcomes = {
        number: entry.outcome for number, entry in entries.items() if isinstance(entry, ScoredTrial) and entry.judged
    }
    order = rank(sweep.config.objective, outcomes)
    rest = sorted(entries.keys() - outcomes.keys())
    return Account(
        folder=folder,
        sweep=sweep,
        progress=load_progress(folder),
        entries=[entries[number] for number in order + rest],
        ranks={number: place for place, number in enumerate(order, 1)},
        front=front(sweep.config.objective, outcomes) if sweep.config.objective.second else [],
        pretrainings={run.name: read_metrics(run) for run in sorted(folder.glob("pretrained/*")) if run.is_dir()},
    )


def read_trial(folder: Path, sweep: Sweep, trial: Trial) -> TrialRecord:
    """Read the records of a trial's runs.

    Raises:
        UserError: a file is damaged.
    """
    runs = generations(folder, trial.number)
    if trial.values.keys() - sweep.config.space.keys():
        strange = ", ".join(trial.values.keys() - sweep.config.space.keys())
        raise damaged(folder / "trials.json", "the trials of this sweep", f"trial {trial.number} sets {strange}")
    rows = history(folder, runs[-1].run) if runs else []
    own = [row for generation in runs for row in read_metrics(generation.run)]
    finalist = _finalist(folder / "finalists" / f"{trial.number:04d}.json")
    row, found = kept(rows), outcome(sweep.config_of(trial.values, folder), rows) if _has_nll(rows) else None
    if row is None and trial.state == "finished":
        where = (runs[-1].run if runs else folder / "trials" / f"{trial.number:04d}") / "metrics.jsonl"
        raise damaged(where, "the records of a finished trial", "there is no epoch of the VAE")
    if row is None:
        return TrialRecord(trial, runs, rows, own, finalist)
    if found is None:
        raise damaged(runs[-1].run / "metrics.jsonl", "the records of a trial", "an epoch of the VAE has no NLL")
    objective = sweep.config.objective
    return ScoredTrial(
        trial=trial,
        generations=runs,
        rows=rows,
        own=own,
        finalist=finalist,
        outcome=found,
        off=found.kl_off(objective),
        shortcomings=found.shortcomings(objective),
    )


def _has_nll(rows: list[EpochRecord]) -> bool:
    row = kept(rows)
    return row is not None and row.valid.nll is not None


def _finalist(path: Path) -> dict[str, Results]:
    if not os.path.lexists(path):
        return {}
    content = read_json(path)
    if not isinstance(content, dict) or content.keys() != {"valid", "test"}:
        raise damaged(path, "the results of a finalist", "it should have `valid` and `test`")
    found = {split: results_from_dict(results, path) for split, results in content.items()}
    for split, results in found.items():
        if results.split != split or results.scores.nll is None:
            raise damaged(path, "the results of a finalist", f"those of {split} are of {results.split}, or have no NLL")
    return found
