"""The table of trials in a sweep report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distvae.evaluation.scoring import Estimate
from distvae.sweeps.account import Account, TrialRecord
from distvae.sweeps.labels import NAMES, format_duration, format_value, label


@dataclass(frozen=True)
class Column:
    """A column of the table of trials."""

    title: str
    meaning: str
    text: Callable[[TrialRecord], str | None]  # None: the trial has no such value
    key: Callable[[TrialRecord], float | str | None]  # what the column is sorted by


def columns(account: Account) -> list[Column]:
    """The table of trials, each a row of it, in the order of ``account.entries``."""
    config, ranks = account.sweep.config, account.ranks
    space, objective = config.space, config.objective
    found = [
        Column(
            "rank", "the best is first", lambda e: _or_none(ranks.get(e.number), str), lambda e: ranks.get(e.number)
        ),
        Column("trial", "its number, and its folder's below trials/", _name, lambda e: e.number),
        *(_of_value(key) for key in space),
        Column("state", "how it ended", lambda e: e.trial.state, lambda e: e.trial.state),
        Column(
            "epochs",
            "of the VAE: the one whose weights were kept, of all that were trained",
            lambda e: None if e.outcome is None else f"{e.outcome.epoch} of {e.epochs}",
            lambda e: e.epochs,
        ),
        Column(
            f"NLL, K = {objective.importance_samples}",
            "of validation sentences, nats a sentence, ± standard error",
            lambda e: None if e.scores is None else str(Estimate(**e.scores["nll"])),
            lambda e: _or_none(e.outcome, lambda found: found.nll),
        ),
    ]
    for name in ("ppl", "re"):
        if name in (objective.metric, objective.second):
            found.append(_of_outcome(NAMES[name], "of validation sentences", name))
    found.append(_of_outcome("KL", "of validation sentences, nats a sentence", "kl"))
    if "kl.target_rate" not in space or space["kl.target_rate"].when:
        found.append(
            _of_outcome("λ", "kl.target_rate: where the KL should be, where the method has one", "target_rate", "g")
        )
    if objective.kl_tolerance is not None:
        found.append(
            Column(
                "KL is right",
                f"within {objective.kl_tolerance:.0%} of λ; or by how many nats it is beyond",
                lambda e: None if not has_rate(e) else "yes" if e.within else f"{e.off:.2f} off",
                lambda e: e.off if has_rate(e) else None,
            )
        )
    found += [
        _of_outcome("−ELBO", "RE + KL of validation sentences: prefers collapse", "neg_elbo"),
        Column(
            "AU",
            "active units, of the dimensions of z",
            lambda e: None if e.outcome is None else f"{e.outcome.active_units} of {e.units}",
            lambda e: _or_none(e.outcome, lambda found: found.active_units),
        ),
        _of_outcome("MI", "mutual information of sentence and z, nats", "mutual_information"),
        Column(
            "latent",
            "alive: MI is at least half the KL and half of λ; hollow or weak if not; dead: next to none",
            lambda e: _or_none(e.outcome, lambda found: found.latent),
            lambda e: _or_none(e.outcome, lambda found: found.latent),
        ),
        _of_outcome("γ", "weight of the KL term in the epoch that was kept", "kl_weight", ".3g"),
    ]
    if any(entry.finalist for entry in account.entries):
        for split, name in (("valid", "validation"), ("test", "test")):
            found.append(_of_finalist(split, name, config.finalists.importance_samples))
    found.append(
        Column(
            "time",
            "that it held its place",
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


def has_rate(entry: TrialRecord) -> bool:
    return entry.outcome is not None and entry.outcome.target_rate is not None


def _name(entry: TrialRecord) -> str:
    later = len(entry.generations) - 1
    return f"{entry.number}.{later}" if later > 0 else str(entry.number)


def _of_value(key: str) -> Column:
    def at(entry: TrialRecord) -> float | str | None:
        value = entry.trial.values.get(key)
        return value if isinstance(value, (int, float)) else None if value is None else str(value)

    return Column(label(key), "", lambda e: format_value(e.trial.values[key]) if key in e.trial.values else None, at)


def _of_outcome(title: str, meaning: str, name: str, form: str = ".2f") -> Column:
    def text(entry: TrialRecord) -> str | None:
        value = _or_none(entry.outcome, lambda found: getattr(found, name))
        return None if value is None else format(value, form)

    return Column(title, meaning, text, lambda e: _or_none(e.outcome, lambda found: getattr(found, name)))


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
