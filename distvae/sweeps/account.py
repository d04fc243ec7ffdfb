"""Read a sweep folder: its trials in their order, and their scores.

The folder may have moved, and trials may be running, waiting or failed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distvae.runs.results import Results, results_from_dict
from distvae.runs.tracking import read_metrics
from distvae.sweeps.lineage import Generation, generations, history
from distvae.sweeps.progress import SweepProgress, Trial, load_progress, load_trials
from distvae.sweeps.ranking import Outcome, front, kept, outcome, rank
from distvae.sweeps.storage import open_sweep
from distvae.sweeps.sweep import Sweep
from distvae.system.files import damaged, read_json


@dataclass(frozen=True)
class TrialRecord:
    """A trial, and what its runs have recorded."""

    trial: Trial
    generations: list[Generation]
    rows: list[dict[str, Any]]  # of its last run, and of those that this went on from
    own: list[dict[str, Any]]  # of all its runs, and of no other trial's
    outcome: Outcome | None
    scores: dict[str, Any] | None  # of the validation sentences, that the outcome is taken from
    off: float | None  # nats by which the KL is beyond its tolerance
    shortcomings: str | None  # which constraints it misses; empty: none
    units: int | None  # of the latent variable
    finalist: dict[str, Results]  # by split, scored again with more importance samples; empty if it is none

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def within(self) -> bool:
        """Whether the KL is where it should be."""
        return self.off == 0

    @property
    def fine(self) -> bool:
        """Whether it meets the sweep's constraints, and so ranks before all that do not."""
        return self.shortcomings == ""

    @property
    def judged(self) -> bool:
        """Whether it has ended well and can be ranked."""
        return self.outcome is not None and self.trial.well

    @property
    def epochs(self) -> int:
        """That the VAE was trained for, those of other trials that it goes on from included."""
        return max((row["epoch"] for row in self.rows if row["stage"] == "train"), default=0)


@dataclass(frozen=True)
class Account:
    """All that a sweep's folder tells."""

    folder: Path
    sweep: Sweep
    progress: SweepProgress
    entries: list[TrialRecord]  # the best first; behind them, by their numbers, those that cannot be ranked
    ranks: dict[int, int]  # from 1, by the trials' numbers
    front: list[int]  # of two objectives: trials that no other beats in both
    pretrainings: dict[str, list[dict[str, Any]]]  # records of those that trials share, by fingerprint

    @property
    def judged(self) -> list[TrialRecord]:
        return [entry for entry in self.entries if entry.judged]

    @property
    def best(self) -> TrialRecord | None:
        return self.entries[0] if self.judged else None


def gather(folder: str | Path) -> Account:
    """Read all that a sweep's folder tells.

    Raises:
        UserError: it is no sweep's folder, or a file in it is damaged.
    """
    folder = Path(folder)
    sweep = open_sweep(folder)
    entries = {trial.number: read_trial(folder, sweep, trial) for trial in load_trials(folder)}
    outcomes = {number: entry.outcome for number, entry in entries.items() if entry.judged}
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
    """Read what a trial's runs have recorded.

    Raises:
        UserError: a file is damaged.
    """
    runs = generations(folder, trial.number)
    if trial.values.keys() - sweep.config.space.keys():
        strange = ", ".join(trial.values.keys() - sweep.config.space.keys())
        raise damaged(folder / "trials.json", "this sweep's trials", f"trial {trial.number} has values of {strange}")
    rows = history(folder, runs[-1].run) if runs else []
    row = kept(rows)
    if row is None and trial.state == "finished":
        where = (runs[-1].run if runs else folder / "trials" / f"{trial.number:04d}") / "metrics.jsonl"
        raise damaged(where, "the records of a trial that has finished", "there is no epoch of the VAE")
    if row is not None and row["valid"]["nll"] is None:
        raise damaged(runs[-1].run / "metrics.jsonl", "the records of a trial", "an epoch of the VAE has no NLL")
    found = outcome(sweep.config_of(trial.values, folder), rows)
    return TrialRecord(
        trial=trial,
        generations=runs,
        rows=rows,
        own=[row for generation in runs for row in read_metrics(generation.run)],
        outcome=found,
        scores=None if row is None else row["valid"],
        off=None if found is None else found.kl_off(sweep.config.objective),
        shortcomings=None if found is None else found.shortcomings(sweep.config.objective),
        units=None if row is None else len(row["valid"]["kl_per_dimension"]),
        finalist=_finalist(folder / "finalists" / f"{trial.number:04d}.json"),
    )


def _finalist(path: Path) -> dict[str, Results]:
    if not os.path.lexists(path):
        return {}
    content = read_json(path)
    if not isinstance(content, dict) or content.keys() != {"valid", "test"}:
        raise damaged(path, "a finalist's results", "it should hold `valid` and `test`")
    found = {split: results_from_dict(results, path) for split, results in content.items()}
    for split, results in found.items():
        if results.split != split or results.scores.nll is None:
            raise damaged(path, "a finalist's results", f"those of {split} are of {results.split}, or have no NLL")
    return found
