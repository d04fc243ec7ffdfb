"""Where the time of a sweep went."""

from __future__ import annotations

from dataclasses import dataclass

from distvae.sweeps.account import Account


@dataclass(frozen=True)
class Spent:
    """A part of a sweep's time."""

    what: str
    seconds: float
    share: float  # of the table that it stands in


def by_the_clock(account: Account) -> list[Spent]:
    """What a sweep's time went by with."""
    progress = account.progress
    parts = {
        "pretraining that trials share": progress.pretraining_seconds,
        "trials": progress.trial_seconds,
        "finalists": progress.finalist_seconds,
    }
    parts["starting, and all else"] = max(0.0, progress.seconds - sum(parts.values()))
    return _shares(parts)


def by_the_trials(account: Account) -> list[Spent]:
    """What the places in which trials can run did, while trials ran."""
    rows = [row for entry in account.entries for row in entry.own]
    held = sum(entry.trial.seconds for entry in account.entries)

    def training(stage: str) -> float:
        return sum(row["train"]["seconds"] for row in rows if row["stage"] == stage)

    parts = {
        "pretraining steps": training("pretrain"),
        "training steps": training("train"),
        "validation, NLL included": sum(row.get("valid_seconds", 0.0) for row in rows),
        "training stood still for a checkpoint": sum(row["saving"]["stall_seconds"] for row in rows),
    }
    parts["starting, test sentences, and all else"] = max(0.0, held - sum(parts.values()))
    parts["places that were free"] = max(0.0, account.progress.place_seconds - held)
    return _shares(parts)


def utilisation(account: Account) -> float | None:
    """The share of the places' time in which a trial held them; None where no time is told."""
    room = account.progress.place_seconds
    return sum(entry.trial.seconds for entry in account.entries) / room if room else None


def _shares(parts: dict[str, float]) -> list[Spent]:
    total = sum(parts.values())
    return [Spent(what, seconds, seconds / total) for what, seconds in parts.items() if seconds > 0]
