"""Where the time of a sweep went."""

from __future__ import annotations

from dataclasses import dataclass

from distvae.sweeps.account import Account


@dataclass(frozen=True)
class Spent:
    """A row of a table of times."""

    what: str
    seconds: float
    share: float  # of the table's total


def by_the_clock(account: Account) -> list[Spent]:
    """Return how the wall-clock time of a sweep was spent."""
    progress = account.progress
    parts = {
        "pretraining that trials share": progress.pretraining_seconds,
        "trials": progress.trial_seconds,
        "finalists": progress.finalist_seconds,
    }
    parts["startup and everything else"] = max(0.0, progress.seconds - sum(parts.values()))
    return _shares(parts)


def by_the_trials(account: Account) -> list[Spent]:
    """Return how the slots for trials were used while trials ran."""
    rows = [row for entry in account.entries for row in entry.own]
    held = sum(entry.trial.seconds for entry in account.entries)

    def training(stage: str) -> float:
        return float(sum(row.train.seconds for row in rows if row.stage == stage))

    parts: dict[str, float] = {
        "pretraining steps": training("pretrain"),
        "training steps": training("train"),
        "validation, including the NLL": sum(row.valid_seconds for row in rows),
        "training blocked by a checkpoint": sum(row.saving.stall_seconds for row in rows),
    }
    parts["startup, test sentences and everything else"] = max(0.0, held - sum(parts.values()))
    parts["free slots"] = max(0.0, account.progress.place_seconds - held)
    return _shares(parts)


def utilisation(account: Account) -> float | None:
    """Return the share of the slots' time in which a trial held them, or None before any trial ran."""
    room = account.progress.place_seconds
    return sum(entry.trial.seconds for entry in account.entries) / room if room else None


def _shares(parts: dict[str, float]) -> list[Spent]:
    total = sum(parts.values())
    return [Spent(what, seconds, seconds / total) for what, seconds in parts.items() if seconds > 0]
