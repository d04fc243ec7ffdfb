"""The table of trials in a sweep report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distvae.evaluation.metrics import Metric
from distvae.evaluation.scores import Estimate
from distvae.sweeps.account import Account, ScoredTrial, TrialRecord
from distvae.sweeps.labels import format_duration, format_value, label
from distvae.sweeps.specification import ObjectiveConfig, SweepConfig


@dataclass(frozen=True)
class TrialColumn:
    """A column of the table of trials."""

    title: str
    meaning: str
    text: Callable[[TrialRecord], str | None]  # None: the trial has no such value
    key: Callable[[TrialRecord], float | str | None]  # to sort by
    link: Callable[[TrialRecord], str | None] = lambda entry: None  # relative to the sweep folder


def columns(account: Account) -> list[TrialColumn]:
    """Return the columns of the table of trials, whose rows are ``account.entries``."""
    config, ranks = account.sweep.config, account.ranks
    space, objective = config.space, config.objective
    found = [
        TrialColumn(
            "rank", "1 is the best", lambda e: _or_none(ranks.get(e.number), str), lambda e: ranks.get(e.number)
        ),
        TrialColumn("trial", "number, and link to its run folder", _name, lambda e: e.number, _run_folder),
        *(_of_value(key) for key in space),
        TrialColumn(
            "state",
            "how it ended, and link to its log",
            lambda e: e.trial.state,
            lambda e: e.trial.state,
            lambda e: _log(account, e),
        ),
        TrialColumn(
            "epochs",
            "of the VAE: the one whose weights were kept, of all",
            _text(lambda e: f"{e.outcome.epoch} of {e.epochs}"),
            lambda e: e.epochs,
        ),
    ]
    for metric in objective.shown:
        found.append(_of_metric(metric, objective))
        if metric.key == "kl":
            found += _of_target(config)
    found += [
        TrialColumn(
            "latent",
            "alive: MI is at least half the KL and half of λ; hollow or weak: less; dead: almost none",
            _text(lambda e: e.outcome.latent),
            _key(lambda e: e.outcome.latent),
        ),
        TrialColumn(
            "γ",
            "weight of the KL term in the epoch that was kept",
            _text(lambda e: f"{e.outcome.kl_weight:.3g}"),
            _key(lambda e: e.outcome.kl_weight),
        ),
    ]
    if any(entry.finalist for entry in account.entries):
        for split, name in (("valid", "validation"), ("test", "test")):
            found.append(_of_finalist(split, name, config.finalists.importance_samples))
    found.append(
        TrialColumn(
            "time",
            "for which the trial held a slot",
            lambda e: format_duration(e.trial.seconds) if e.trial.seconds else None,
            lambda e: e.trial.seconds,
        )
    )
    if objective.second is not None:
        found.append(
            TrialColumn(
                "front",
                f"no other trial beats it in both {' and '.join(objective.titles)}",
                lambda e: "yes" if e.number in account.front else None,
                lambda e: int(e.number not in account.front),
            )
        )
    return found


def _text(found: Callable[[ScoredTrial], str | None]) -> Callable[[TrialRecord], str | None]:
    """Return None for trials without scores."""
    return lambda entry: found(entry) if isinstance(entry, ScoredTrial) else None


def _key(found: Callable[[ScoredTrial], float | str | None]) -> Callable[[TrialRecord], float | str | None]:
    """Return None for trials without scores."""
    return lambda entry: found(entry) if isinstance(entry, ScoredTrial) else None


def _name(entry: TrialRecord) -> str:
    later = len(entry.generations) - 1
    return f"{entry.number}.{later}" if later > 0 else str(entry.number)


def _run_folder(entry: TrialRecord) -> str | None:
    return f"trials/{entry.generations[-1].run.name}/" if entry.generations else None


def _log(account: Account, entry: TrialRecord) -> str | None:
    log = f"logs/{entry.number:04d}.log"
    return log if (account.folder / log).is_file() else None


def _of_value(key: str) -> TrialColumn:
    def at(entry: TrialRecord) -> float | str | None:
        value = entry.trial.values.get(key)
        return value if isinstance(value, (int, float)) else None if value is None else str(value)

    return TrialColumn(
        label(key), "", lambda e: format_value(e.trial.values[key]) if key in e.trial.values else None, at
    )


def _of_metric(metric: Metric, objective: ObjectiveConfig) -> TrialColumn:
    meaning, key = f"of validation sentences: {metric.explanation}", _key(lambda e: metric.value(e.outcome.scores))
    if metric.key != "nll":
        return TrialColumn(metric.title, meaning, _text(lambda e: metric.short(e.outcome.scores)), key)
    title = f"{metric.title}, K = {objective.importance_samples}"
    return TrialColumn(title, f"{meaning}, ± standard error", _text(lambda e: metric.text(e.outcome.scores)), key)


def _of_target(config: SweepConfig) -> list[TrialColumn]:
    """Return the columns on where the KL should be."""
    found, tolerance = [], config.objective.kl_tolerance
    if "kl.target_rate" not in config.space or config.space["kl.target_rate"].when:
        found.append(
            TrialColumn(
                "λ",
                "kl.target_rate: the target of the KL, if the method has one",
                _text(lambda e: _or_none(e.outcome.target_rate, "{:g}".format)),
                _key(lambda e: e.outcome.target_rate),
            )
        )
    if tolerance is not None:
        found.append(
            TrialColumn(
                "KL is right",
                f"within {tolerance:.0%} of λ; if not, by how many nats it is outside",
                _text(lambda e: None if e.outcome.target_rate is None else "yes" if e.within else f"{e.off:.2f} off"),
                _key(lambda e: None if e.outcome.target_rate is None else e.off),
            )
        )
    return found


def _of_finalist(split: str, name: str, samples: int) -> TrialColumn:
    def at(entry: TrialRecord) -> Estimate | None:
        return entry.finalist[split].scores.nll if split in entry.finalist else None

    return TrialColumn(
        f"{name} NLL, K = {samples}",
        f"of {name} sentences, scored again with more importance samples",
        lambda e: _or_none(at(e), str),
        lambda e: _or_none(at(e), lambda estimate: estimate.mean),
    )


def _or_none(value: Any, change: Callable[[Any], Any]) -> Any:
    return None if value is None else change(value)
