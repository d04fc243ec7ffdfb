"""The lines that a sweep prints about its progress."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from distvae.evaluation.metrics import METRICS
from distvae.runs.records import read_metrics
from distvae.sweeps import ranking
from distvae.sweeps.labels import format_value
from distvae.sweeps.progress import Trial
from distvae.sweeps.ranking import Outcome
from distvae.sweeps.ray.state import SweepState
from distvae.sweeps.specification import ObjectiveConfig


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


def print_epochs(name: str, run: Path, seen: int) -> int:
    """Print the epochs of a pretraining after the first ``seen``. Return how many there are."""
    rows = read_metrics(run)
    for row in rows[seen:]:
        print(
            f"pretraining {name}, epoch {row.epoch}: validation RE {row.valid.re.mean:.2f},"
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
