"""The text of a sweep report."""

from __future__ import annotations

from distvae.evaluation.scoring import Estimate
from distvae.sweeps.account import Account, TrialRecord
from distvae.sweeps.columns import has_rate
from distvae.sweeps.labels import LETTERS, NAMES, count, format_duration, format_trials, format_value
from distvae.sweeps.ranking import Outcome, why_not_best


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
        + f": {count(sweep.trials, 'trial')} of {count(len(sweep.config.space), 'hyperparameter')} by {kind}"
        + (f", of which {begun} {'has' if begun == 1 else 'have'} begun" if begun < sweep.trials else "")
        + (f"; {', '.join(counts)}" if counts else "")
        + "."
    ]
    where = f" on {count(len(progress.nodes), 'node')}" if progress.nodes else ""
    beside = f", {progress.slots} side by side" if progress.slots else ""
    starts = f", in {progress.starts} starts" if progress.starts > 1 else ""
    parts.append(f"It took {format_duration(progress.seconds)}{where}{beside}{starts}.")
    if account.best is None:
        parts.append("No trial can be judged yet.")
        return " ".join(parts)
    judged, objective = account.judged, sweep.config.objective
    if objective.second is not None:
        both = f"{NAMES[objective.metric]} and {NAMES[objective.second]}"
        parts.append(
            f"Judged by {both} none is the best: no other beats {format_trials(account.front)} in both."
            f" By {NAMES[objective.metric]} alone, {_told(account.best)}."
        )
    elif account.best.fine:
        parts.append(f"The best is {_told(account.best)}.")
    else:
        parts.append(f"No trial meets the constraints; the nearest is {_told(account.best)}.")
    with_rate = [entry for entry in judged if has_rate(entry)]
    if objective.kl_tolerance is not None and with_rate:
        within = sum(entry.within for entry in with_rate)
        parts.append(
            f"Of the {count(len(with_rate), 'judged trial')}{' with a λ' * (len(with_rate) < len(judged))} {within}"
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


def _told(entry: TrialRecord) -> str:
    values = ", ".join(f"{LETTERS.get(key, key)} = {format_value(value)}" for key, value in entry.trial.values.items())
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
    lines = [f"{format_trials(numbers)} {state}: {reason}" for (state, reason), numbers in told.items()]
    waiting = [entry.number for entry in account.entries if entry.trial.state in ("running", "waiting")]
    if waiting:
        lines.append(f"{format_trials(sorted(waiting))} had not ended when this was written")
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
            ", ".join(
                f"{LETTERS.get(key, key)} = {format_value(value)}" for key, value in (generation.values or {}).items()
            ),
        )
        for entry in sorted(account.entries, key=lambda entry: entry.number)
        for generation in entry.generations
        if generation.parent is not None
    ]
