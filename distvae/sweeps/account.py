"""What a sweep has come to, as its folder tells it: trials in their order, their scores, and that in words.

All is read anew, wherever the folder lies, and at any time: trials may run, wait, or have failed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distvae.evaluation.scores import Estimate
from distvae.runs.results import Results, results_from_dict
from distvae.runs.tracking import read_metrics
from distvae.sweeps.sweep import (
    NAMES,
    Generation,
    Outcome,
    Progress,
    Sweep,
    Trial,
    Value,
    front,
    generations,
    history,
    kept,
    load_progress,
    load_trials,
    open_sweep,
    outcome,
    rank,
    why_not_best,
)
from distvae.system.files import damaged, read_json

# The paper's letters for keys.
LETTERS = {"kl.target_rate": "λ", "kl.threshold": "β", "kl.multiplier": "χ"}


@dataclass(frozen=True)
class Entry:
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
    progress: Progress
    entries: list[Entry]  # the best first; behind them, by their numbers, those that cannot be ranked
    ranks: dict[int, int]  # from 1, by the trials' numbers
    front: list[int]  # of two objectives: trials that no other beats in both
    pretrainings: dict[str, list[dict[str, Any]]]  # records of those that trials share, by fingerprint

    @property
    def judged(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.judged]

    @property
    def best(self) -> Entry | None:
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


def read_trial(folder: Path, sweep: Sweep, trial: Trial) -> Entry:
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
    return Entry(
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


# -- The table ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of the table of trials."""

    title: str
    meaning: str
    text: Callable[[Entry], str | None]  # None: the trial has no such value
    key: Callable[[Entry], float | str | None]  # what the column is sorted by


def label(key: str) -> str:
    """A key of a training config, beside the paper's letter for it."""
    return f"{LETTERS[key]} {key}" if key in LETTERS else key


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
                lambda e: None if not _has_rate(e) else "yes" if e.within else f"{e.off:.2f} off",
                lambda e: e.off if _has_rate(e) else None,
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
            lambda e: duration(e.trial.seconds) if e.trial.seconds else None,
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


def _has_rate(entry: Entry) -> bool:
    return entry.outcome is not None and entry.outcome.target_rate is not None


def _name(entry: Entry) -> str:
    later = len(entry.generations) - 1
    return f"{entry.number}.{later}" if later > 0 else str(entry.number)


def _of_value(key: str) -> Column:
    def at(entry: Entry) -> float | str | None:
        value = entry.trial.values.get(key)
        return value if isinstance(value, (int, float)) else None if value is None else str(value)

    return Column(label(key), "", lambda e: said(e.trial.values[key]) if key in e.trial.values else None, at)


def _of_outcome(title: str, meaning: str, name: str, form: str = ".2f") -> Column:
    def text(entry: Entry) -> str | None:
        value = _or_none(entry.outcome, lambda found: getattr(found, name))
        return None if value is None else format(value, form)

    return Column(title, meaning, text, lambda e: _or_none(e.outcome, lambda found: getattr(found, name)))


def _of_finalist(split: str, name: str, samples: int) -> Column:
    def at(entry: Entry) -> Estimate | None:
        return entry.finalist[split].scores.nll if split in entry.finalist else None

    return Column(
        f"{name} NLL, K = {samples}",
        f"of {name} sentences, scored again with more importance samples",
        lambda e: _or_none(at(e), str),
        lambda e: _or_none(at(e), lambda estimate: estimate.mean),
    )


def _or_none(value: Any, change: Callable[[Any], Any]) -> Any:
    return None if value is None else change(value)


def said(value: Value) -> str:
    """A value of a space, in a few characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """A time in its two greatest units."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min"


# -- Words -------------------------------------------------------------------------------------------------------------


def summary(account: Account) -> str:
    """A sweep in a paragraph."""
    progress, sweep = account.progress, account.sweep
    states = [entry.trial.state for entry in account.entries]
    counts = [f"{states.count(s)} {s}" for s in ("finished", "stopped", "failed", "running", "waiting") if s in states]
    begun = len(account.entries)
    kind = "grid and random search" if sweep.config.search == "random" else "Optuna"
    kind += "" if sweep.config.scheduler.name == "none" else f" with {sweep.config.scheduler.name.upper()}"
    parts = [
        f"The sweep is {progress.state}"
        + (f" ({progress.reason})" if progress.reason else "")
        + f": {_count(sweep.trials, 'trial')} of {_count(len(sweep.config.space), 'hyperparameter')} by {kind}"
        + (f", of which {begun} {'has' if begun == 1 else 'have'} begun" if begun < sweep.trials else "")
        + (f"; {', '.join(counts)}" if counts else "")
        + "."
    ]
    where = f" on {_count(len(progress.nodes), 'node')}" if progress.nodes else ""
    beside = f", {progress.slots} side by side" if progress.slots else ""
    starts = f", in {progress.starts} starts" if progress.starts > 1 else ""
    parts.append(f"It took {duration(progress.seconds)}{where}{beside}{starts}.")
    if account.best is None:
        parts.append("No trial can be judged yet.")
        return " ".join(parts)
    judged, objective = account.judged, sweep.config.objective
    if objective.second is not None:
        both = f"{NAMES[objective.metric]} and {NAMES[objective.second]}"
        parts.append(
            f"Judged by {both} none is the best: no other beats {_trials(account.front)} in both."
            f" By {NAMES[objective.metric]} alone, {_told(account.best)}."
        )
    elif account.best.fine:
        parts.append(f"The best is {_told(account.best)}.")
    else:
        parts.append(f"No trial meets the constraints; the nearest is {_told(account.best)}.")
    with_rate = [entry for entry in judged if _has_rate(entry)]
    if objective.kl_tolerance is not None and with_rate:
        within = sum(entry.within for entry in with_rate)
        parts.append(
            f"Of the {_count(len(with_rate), 'judged trial')}{' with a λ' * (len(with_rate) < len(judged))} {within}"
            f" ({within / len(with_rate):.0%}) {'has its' if within == 1 else 'have their'} KL within"
            f" {objective.kl_tolerance:.0%} of λ."
        )
    states = [entry.outcome.latent for entry in judged]
    counts = [f"{states.count(state)} {state}" for state in ("alive", "weak", "hollow", "dead") if state in states]
    if counts:
        parts.append(f"Latents: {', '.join(counts)}.")
    if behind(account) is not None:
        parts.append(behind(account))
    return " ".join(parts)


def behind(account: Account) -> str | None:
    """Why the trial with the best metric does not rank first, as a sentence; None if it does."""
    objective = account.sweep.config.objective
    text = why_not_best(objective, {entry.number: entry.outcome for entry in account.judged})
    return None if text is None else f"{text[0].upper()}{text[1:]}."


def _told(entry: Entry) -> str:
    values = ", ".join(f"{LETTERS.get(key, key)} = {said(value)}" for key, value in entry.trial.values.items())
    found = entry.outcome
    text = (
        f"trial {entry.number} ({values}): NLL {Estimate(**entry.scores['nll'])}, −ELBO {found.neg_elbo:.2f}, KL"
        f" {found.kl:.2f}{_rate(found)}, MI {found.mutual_information:.2f}, {found.active_units} of"
        f" {entry.units} units active, latent {found.latent}"
    )
    if "test" in entry.finalist:
        scores = entry.finalist["test"].scores
        text += f"; test NLL {scores.nll} with K = {scores.importance_samples}"
    return text


def _rate(found: Outcome) -> str:
    return "" if found.target_rate is None else f" for λ = {found.target_rate:g}"


def by_elbo(account: Account) -> str | None:
    """What −ELBO would have chosen, if that is another trial."""
    if account.best is None:
        return None
    chosen = min(account.judged, key=lambda entry: entry.outcome.neg_elbo)
    if chosen is account.best or account.sweep.config.objective.second:
        return None
    found, best = chosen.outcome, account.best.outcome
    return (
        f"By −ELBO alone trial {chosen.number} would have won: −ELBO {found.neg_elbo:.2f} against {best.neg_elbo:.2f}"
        f" of trial {account.best.number}, with a KL of {found.kl:.2f}{_rate(found)} against"
        f" {best.kl:.2f}{_rate(best)} and an MI of {found.mutual_information:.2f} against"
        f" {best.mutual_information:.2f}."
    )


def endings(account: Account) -> list[str]:
    """What failed or was stopped, and why; trials with the same reason together."""
    told: dict[tuple[str, str], list[int]] = {}
    for entry in sorted(account.entries, key=lambda entry: entry.number):
        if entry.trial.state in ("failed", "stopped"):
            reason = entry.trial.reason or "no reason is told"
            told.setdefault((entry.trial.state, reason), []).append(entry.number)
    lines = [f"{_trials(numbers)} {state}: {reason}" for (state, reason), numbers in told.items()]
    waiting = [entry.number for entry in account.entries if entry.trial.state in ("running", "waiting")]
    if waiting:
        lines.append(f"{_trials(sorted(waiting))} had not ended when this was written")
    return lines


def reading(account: Account) -> list[str]:
    """How the report is to be read."""
    objective, finalists = account.sweep.config.objective, account.sweep.config.finalists
    better = {"min": "the lower the better", "max": "the higher the better"}[objective.mode]
    lines = [
        f"Trials are judged by {NAMES[objective.metric]} of the validation sentences, {better}, with the weights of the"
        " epoch that was kept. All is in nats a sentence; ± is a standard error over sentences.",
        "NLL is −log p(x), estimated with K importance samples. −ELBO = RE + KL lies above it by how far q(z given x)"
        " is from the model's own posterior. A dead latent variable has no such gap and one that tells something has,"
        " so −ELBO prefers collapse: a sweep that went by it would end with dead ones.",
        f"Few importance samples put the NLL too high, most where much is known. So K is {objective.importance_samples}"
        f" in each epoch, and the best {finalists.count} are scored again with K = {finalists.importance_samples}."
        if finalists.count
        else f"Few importance samples put the NLL too high, most where much is known; K is"
        f" {objective.importance_samples} here.",
    ]
    if objective.kl_tolerance is not None:
        lines.append(
            f"A trial's KL should lie within {objective.kl_tolerance:.0%} of its λ (kl.target_rate), where its method"
            " has a λ. The tolerance is not β (kl.threshold), which may be swept."
        )
    if objective.require_alive:
        lines.append(
            "A trial's latent should be alive: its MI at least half of its KL, and of its λ. A KL near λ alone does not"
            " make it so."
        )
    if objective.kl_tolerance is not None or objective.require_alive:
        lines.append("A trial that misses a constraint ranks behind all that meet them, by how many nats it misses.")
    lines.append("AU are dimensions of z whose mean varies over the sentences, MI is what z tells of the sentence.")
    return lines


def lineage(account: Account) -> list[tuple[str, str, int, str]]:
    """Of population-based training: run, the run that it went on from, that one's step, and the values since then."""
    return [
        (
            generation.run.name,
            generation.parent.name,
            generation.step,
            ", ".join(f"{LETTERS.get(key, key)} = {said(value)}" for key, value in (generation.values or {}).items()),
        )
        for entry in sorted(account.entries, key=lambda entry: entry.number)
        for generation in entry.generations
        if generation.parent is not None
    ]


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


def _trials(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:20])) + (f" and {len(numbers) - 20} more" if len(numbers) > 20 else "")
    return f"trial{'' if len(numbers) == 1 else 's'} {shown}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
