"""The text of a sweep report."""

from __future__ import annotations

from distvae.methods.policy import LatentState
from distvae.sweeps.account import Account, ScoredTrial
from distvae.sweeps.labels import format_duration, format_trials, format_values
from distvae.sweeps.ranking import Outcome, why_not_best
from distvae.system.plural import counted


def summary(account: Account) -> str:
    """Return a paragraph about a sweep."""
    progress, sweep = account.progress, account.sweep
    states = [entry.trial.state for entry in account.entries]
    counts = [f"{states.count(s)} {s}" for s in ("finished", "stopped", "failed", "running", "waiting") if s in states]
    begun = len(account.entries)
    kind = "grid and random search" if sweep.config.search == "random" else "Optuna"
    kind += "" if sweep.config.scheduler.name == "none" else f" with {sweep.config.scheduler.name.upper()}"
    parts = [
        f"The sweep is {progress.state}"
        + (f" ({progress.reason})" if progress.reason else "")
        + f": {counted(sweep.trials, 'trial')} of {counted(len(sweep.config.space), 'hyperparameter')} by {kind}"
        + (f", of which {begun} {'has' if begun == 1 else 'have'} begun" if begun < sweep.trials else "")
        + (f"; {', '.join(counts)}" if counts else "")
        + "."
    ]
    where = f" on {counted(len(progress.nodes), 'node')}" if progress.nodes else ""
    beside = f", {progress.slots} side by side" if progress.slots else ""
    starts = f", in {progress.starts} starts" if progress.starts > 1 else ""
    parts.append(f"It took {format_duration(progress.seconds)}{where}{beside}{starts}.")
    if account.best is None:
        parts.append("No trial can be judged yet.")
        return " ".join(parts)
    judged, objective = account.judged, sweep.config.objective
    if objective.second is not None:
        both = " and ".join(objective.titles)
        parts.append(
            f"No trial is the best by both {both}: no other beats {format_trials(account.front)} in both."
            f" By {objective.titles[0]} alone, {_described(account.best, account)}."
        )
    elif account.best.fine:
        parts.append(f"The best is {_described(account.best, account)}.")
    else:
        parts.append(f"No trial meets the constraints; the nearest is {_described(account.best, account)}.")
    with_rate = [entry for entry in judged if entry.outcome.target_rate is not None]
    if objective.kl_tolerance is not None and with_rate:
        within = sum(entry.within for entry in with_rate)
        parts.append(
            f"Of the {counted(len(with_rate), 'judged trial')}{' with a λ' * (len(with_rate) < len(judged))} {within}"
            f" ({within / len(with_rate):.0%}) {'has its' if within == 1 else 'have their'} KL within"
            f" {objective.kl_tolerance:.0%} of λ."
        )
    latents = [entry.outcome.latent for entry in judged]
    kinds: tuple[LatentState, ...] = ("alive", "weak", "hollow", "dead")
    counts = [f"{latents.count(latent)} {latent}" for latent in kinds if latent in latents]
    if counts:
        parts.append(f"Latents: {', '.join(counts)}.")
    why = behind(account)
    if why is not None:
        parts.append(why)
    return " ".join(parts)


def behind(account: Account) -> str | None:
    """Return a sentence on why the trial with the best metric does not rank first, or None if it does."""
    objective = account.sweep.config.objective
    text = why_not_best(objective, {entry.number: entry.outcome for entry in account.judged})
    return None if text is None else f"{text[0].upper()}{text[1:]}."


def _described(entry: ScoredTrial, account: Account) -> str:
    found = entry.outcome
    text = f"trial {entry.number} ({format_values(entry.trial.values)}): "
    for metric in account.sweep.config.objective.shown:
        if metric.key not in found.metrics:
            continue
        score = metric.text(found.scores) if metric.key == "nll" else metric.short(found.scores)
        text += f"{metric.title} {score}{_rate(found) if metric.key == 'kl' else ''}, "
    text += f"latent {found.latent or '–'}"
    if "test" in entry.finalist:
        scores = entry.finalist["test"].scores
        text += f"; test NLL {scores.nll} with K = {scores.importance_samples}"
    return text


def _rate(found: Outcome) -> str:
    return "" if found.target_rate is None else f" for λ = {found.target_rate:g}"


def by_elbo(account: Account) -> str | None:
    """Return a sentence on the trial that −ELBO would have chosen, or None if it is the best one."""
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
    """Return a line for each reason why trials failed or were stopped, and one for those that have not ended."""
    told: dict[tuple[str, str], list[int]] = {}
    for entry in sorted(account.entries, key=lambda entry: entry.number):
        if entry.trial.state in ("failed", "stopped"):
            reason = entry.trial.reason or "no reason is given"
            told.setdefault((entry.trial.state, reason), []).append(entry.number)
    lines = [f"{format_trials(numbers)} {state}: {reason}" for (state, reason), numbers in told.items()]
    waiting = [entry.number for entry in account.entries if entry.trial.state in ("running", "waiting")]
    if waiting:
        lines.append(f"{format_trials(sorted(waiting))} had not ended when this report was written")
    return lines


def reading(account: Account) -> list[str]:
    """Return notes on how to read the report."""
    objective, finalists = account.sweep.config.objective, account.sweep.config.finalists
    better = {"min": "the lower the better", "max": "the higher the better"}[objective.mode]
    lines = [
        f"Trials are ranked by {objective.titles[0]} of the validation sentences, {better}, with the weights of the"
        " epoch that was kept. Scores are in nats per sentence; ± is a standard error over sentences.",
        "NLL is −log p(x), estimated with K importance samples. −ELBO = RE + KL lies above it by how far q(z given x)"
        " is from the model's own posterior. A dead latent has no such gap and an informative one does, so −ELBO"
        " prefers collapse: ranking by it would select dead latents.",
        f"With few importance samples the NLL is too high, most for informative latents. So K is"
        f" {objective.importance_samples} in each epoch, and the best {finalists.count} are scored again with K ="
        f" {finalists.importance_samples}."
        if finalists.count
        else f"With few importance samples the NLL is too high, most for informative latents; K is"
        f" {objective.importance_samples} here.",
    ]
    if objective.kl_tolerance is not None:
        lines.append(
            f"The KL of a trial should be within {objective.kl_tolerance:.0%} of its λ (kl.target_rate), if its"
            " method has one. The tolerance is not β (kl.threshold), which may be swept."
        )
    if objective.require_alive:
        lines.append(
            "A trial's latent should be alive: its MI at least half of its KL, and of its λ. A KL near λ alone does not"
            " make it so."
        )
    if objective.kl_tolerance is not None or objective.require_alive:
        lines.append("A trial that misses a constraint ranks behind all that meet them, by how many nats it misses.")
    lines.append(
        "AU are the dimensions of z whose mean varies over the sentences. MI is the information that z has about the"
        " sentence."
    )
    return lines


def lineage(account: Account) -> list[tuple[str, str, int, str]]:
    """Return the continuations of population-based training: run, parent, step of the parent, and new values."""
    return [
        (
            generation.run.name,
            generation.parent.name,
            generation.step,
            format_values(generation.values or {}),
        )
        for entry in sorted(account.entries, key=lambda entry: entry.number)
        for generation in entry.generations
        if generation.parent is not None
    ]
