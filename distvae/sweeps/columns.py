"""The table of trials in a sweep report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distvae.evaluation.scores import Estimate
from distvae.sweeps.account import Account, ScoredTrial, TrialRecord
from distvae.sweeps.labels import NAMES, format_duration, format_value, label


@dataclass(frozen=True)
class Column:
    """A column of the table of trials."""

    title: str
    meaning: str
    text: Callable[[TrialRecord], str | None]  # None: the trial has no such value
    key: Callable[[TrialRecord], float | str | None]  # to sort by


def columns(account: Account) -> list[Column]:
    """Return the columns of the table of trials, whose rows are ``account.entries``."""
    config, ranks = account.sweep.config, account.ranks
    space, objective = config.space, config.objective
    found = [
        Column(
            "rank", "the best is first", lambda e: _or_none(ranks.get(e.number), str), lambda e: ranks.get(e.number)
        ),
        Column("trial", "its number, which names its folder below trials/", _name, lambda e: e.number),
        *(_of_value(key) for key in space),
        Column("state", "how it ended", lambda e: e.trial.state, lambda e: e.trial.state),
        Column(
            "epochs",
            "of the VAE: the one whose weights were kept, and their number",
            _text(lambda e: f"{e.outcome.epoch} of {e.epochs}"),
            lambda e: e.epochs,
        ),
        Column(
            f"NLL, K = {objective.importance_samples}",
            "of validation sentences, in nats per sentence, ± standard error",
            _text(lambda e: str(e.nll)),
            _key(lambda e: e.outcome.nll),
        ),
    ]
    for name in ("ppl", "re"):
        if name in (objective.metric, objective.second):
            found.append(_of_outcome(NAMES[name], "of validation sentences", name))
    found.append(_of_outcome("KL", "of validation sentences, in nats per sentence", "kl"))
    if "kl.target_rate" not in space or space["kl.target_rate"].when:
        found.append(
            _of_outcome("λ", "kl.target_rate: the target of the KL, if the method has one", "target_rate", "g")
        )
    if objective.kl_tolerance is not None:
        found.append(
            Column(
                "KL is right",
                f"within {objective.kl_tolerance:.0%} of λ; if not, by how many nats it is outside",
                _text(lambda e: None if e.outcome.target_rate is None else "yes" if e.within else f"{e.off:.2f} off"),
                _key(lambda e: None if e.outcome.target_rate is None else e.off),
            )
        )
    found += [
        _of_outcome("−ELBO", "RE + KL of validation sentences: prefers collapse", "neg_elbo"),
        Column(
            "AU",
            "active units, of the dimensions of z",
            _text(lambda e: f"{e.outcome.active_units} of {e.units}"),
            _key(lambda e: e.outcome.active_units),
        ),
        _of_outcome("MI", "mutual information of sentence and z, nats", "mutual_information"),
        Column(
            "latent",
            "alive: MI is at least half the KL and half of λ; hollow or weak: less; dead: almost none",
            _text(lambda e: e.outcome.latent),
            _key(lambda e: e.outcome.latent),
        ),
        _of_outcome("γ", "weight of the KL term in the epoch that was kept", "kl_weight", ".3g"),
    ]
    if any(entry.finalist for entry in account.entries):
        for split, name in (("valid", "validation"), ("test", "test")):
            found.append(_of_finalist(split, name, config.finalists.importance_samples))
    found.append(
        Column(
            "time",
            "for which it held a slot",
            lambda e: format_duration(e.trial.seconds) if e.trial.seconds else None,
            lambda e: e.trial.seconds,
        )
    )
    if objective.second is not None:
        found.append(
            Column(
                "front",
                f"no other trial beats it in both {NAMES[objective.metric]} and {NAMES[objective.second]}",
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


def _of_value(key: str) -> Column:
    def at(entry: TrialRecord) -> float | str | None:
        value = entry.trial.values.get(key)
        return value if isinstance(value, (int, float)) else None if value is None else str(value)

    return Column(label(key), "", lambda e: format_value(e.trial.values[key]) if key in e.trial.values else None, at)


def _of_outcome(title: str, meaning: str, name: str, form: str = ".2f") -> Column:
    def text(entry: ScoredTrial) -> str | None:
        value = getattr(entry.outcome, name)
        return None if value is None else format(value, form)

    return Column(title, meaning, _text(text), _key(lambda e: getattr(e.outcome, name)))


def _of_finalist(split: str, name: str, samples: int) -> Column:
    def at(entry: TrialRecord) -> Estimate | None:
        return entry.finalist[split].scores.nll if split in entry.finalist else None

    return Column(
        f"{name} NLL, K = {samples}",
        f"of {name} sentences, scored again with more importance samples",
        lambda e: _or_none(at(e), str),
        lambda e: _or_none(at(e), lambda estimate: estimate.mean),
    )


def _or_none(value: Any, change: Callable[[Any], Any]) -> Any:
    return None if value is None else change(value)
