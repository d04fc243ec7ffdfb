"""The lines that a sweep prints about its progress."""

from __future__ import annotations

import contextlib
import sys
import time
from datetime import timedelta
from pathlib import Path

from tqdm import tqdm

from distvae.evaluation.metrics import METRICS
from distvae.runs.records import EpochRecord, read_metrics
from distvae.sweeps import lineage, ranking
from distvae.sweeps.labels import format_value
from distvae.sweeps.progress import Trial
from distvae.sweeps.ranking import Outcome
from distvae.sweeps.ray.state import SweepState
from distvae.sweeps.specification import ObjectiveConfig
from distvae.system.errors import UserError, printable

# Least seconds between two tables of the running trials.
PAUSE = 30.0


def trial_line(state: SweepState, trial: Trial) -> str:
    """Describe a trial that has ended, and the sweep's progress."""
    outcomes = state.outcomes()
    found = outcomes.get(trial.number)
    values = " ".join(f"{key}={format_value(value)}" for key, value in trial.values.items())
    line = f"trial {trial.number:>3} {trial.state}"
    if trial.reason is not None:
        line += f" ({trial.reason})"
    if found is not None:
        shown = [metric for metric in state.sweep.config.objective.shown if metric.key in found.metrics]
        line += f", {' '.join(f'{metric.title} {metric.short(found.scores)}' for metric in shown)}"
        line += f" latent {found.latent or '–'}"
    line += f", {values}, after {timedelta(seconds=round(trial.seconds))}; {counts(state)}"
    if outcomes:
        line += f"; {best_trial(state.sweep.config.objective, outcomes)}"
    return line + _time_left(state)


class StatusTable:
    """Prints a table of the running trials: when it has changed, and at most every ``PAUSE`` seconds."""

    def __init__(self, state: SweepState):
        self._state, self._printed, self._rows = state, time.monotonic(), _running(state)

    def update(self) -> None:
        """Print the table if it is due."""
        if time.monotonic() - self._printed < PAUSE:
            return
        self._printed, former, self._rows = time.monotonic(), self._rows, _running(self._state)
        if self._rows and self._rows != former:
            tqdm.write("\n".join(map(printable, _aligned(self._rows))), file=sys.stdout)
            sys.stdout.flush()


def _running(state: SweepState) -> list[list[str]]:
    """Return a header and a row for each running trial; nothing if none is running."""
    metrics = [metric for metric in METRICS.values() if metric.key in ("kl", "mutual_information", "nll", "neg_elbo")]
    rows = []
    for number in sorted(state.running):
        trial = state.trials[number]
        last = _last_record(state, number)
        row = [str(number), trial.state, "–"]
        if last is not None:
            most = getattr(state.sweep.config_of(trial.values, state.folder), last.stage).max_epochs
            row[2] = f"{last.stage} {last.epoch}/{most}"
        row += [(last and metric.short(last.valid)) or "–" for metric in metrics]
        rows.append([*row, " ".join(f"{key}={format_value(value)}" for key, value in trial.values.items())])
    return [["trial", "status", "epoch", *(metric.title for metric in metrics), ""], *rows] if rows else []


def _last_record(state: SweepState, number: int) -> EpochRecord | None:
    with contextlib.suppress(UserError):  # damaged records, which end the trial
        runs = lineage.generations(state.folder, number)
        records = lineage.history(state.folder, runs[-1].run) if runs else []
        return records[-1] if records else None
    return None


def _aligned(rows: list[list[str]]) -> list[str]:
    """Return the rows as lines with columns of equal width, the last one flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([*map(str.rjust, row[:-1], widths), row[-1]]).rstrip() for row in rows]


def counts(state: SweepState) -> str:
    """Count the trials that are done, running and failed."""
    states = [trial.state for trial in state.trials.values()]
    done = sum(trial.well for trial in state.trials.values())
    return f"{done} of {state.sweep.trials} done, {states.count('running')} running, {states.count('failed')} failed"


def best_trial(objective: ObjectiveConfig, outcomes: dict[int, Outcome]) -> str:
    """Describe the best trial, and why it is not the one with the best metric."""
    best = ranking.rank(objective, outcomes)[0]
    short = outcomes[best].shortcomings(objective)
    metric = METRICS[objective.metric]
    line = f"best: trial {best}, {metric.title} {metric.short(outcomes[best].scores)}"
    line += f", though {short}" if short else ""
    why = ranking.why_not_best(objective, outcomes)
    return f"{line}; {why}" if why else line


def print_epochs(name: str, run: Path, seen: int, most: int) -> int:
    """Print the epochs of a pretraining after the first ``seen``, of at most ``most``. Return how many there are."""
    rows = read_metrics(run)
    for row in rows[seen:]:
        print(
            f"pretraining {name}, epoch {row.epoch}/{most}: validation RE {row.valid.re.mean:.2f},"
            f" {row.train.sentences_per_second:.0f} sentences/s",
            flush=True,
        )
    return len(rows)


def _time_left(state: SweepState) -> str:
    ended = [trial.seconds for trial in state.trials.values() if trial.ended]
    left = state.sweep.trials - len(ended)
    if not left:
        return ""
    begun = sum(trial.seconds for trial in state.trials.values() if not trial.ended)
    seconds = max(sum(ended) / len(ended) * left - begun, 0.0) / max(state.progress.slots, 1)
    return f"; about {timedelta(seconds=round(seconds))} left"
