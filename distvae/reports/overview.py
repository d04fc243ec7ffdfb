"""What every report says of its runs: what was scored, how each run ended, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

from distvae.reports.document import Line, Part
from distvae.reports.methods import FinishedRun, Method, Run
from distvae.system.plural import counted


def summary(methods: list[Method]) -> str:
    """Return how many runs have finished, and what they were scored on."""
    finished = [run for method in methods for run in method.finished]
    count = sum(len(method.runs) for method in methods)
    number = f"{counted(count, 'run')}. "
    if len(finished) < count:
        number = f"{len(finished)} of {count} runs have finished. "
    if not finished:
        return number.strip()
    results = finished[0].results
    samples = sorted({run.results.scores.importance_samples for run in finished} - {0})
    return (
        f"{number}{counted(results.scores.sentences, f'{results.split} sentence')},"
        f" {counted(results.scores.tokens, 'token')}; vocabulary {results.vocabulary} of {results.vocabulary_size:,}"
        + ("" if results.unknown is None else f", {results.unknown:.2%} of the words unknown")
        + f"; sentences {results.data}"
        + (f"; NLL from K = {', '.join(map(str, samples))} importance samples." if samples else ".")
    )


def about_scores(methods: list[Method]) -> str:
    """Return the unit of scores and what their errors are."""
    several = any(len(method.finished) > 1 for method in methods)
    spread = "; in parentheses: standard deviation over seeds" if several else ""
    return f"In nats per sentence, ± standard error over sentences{spread}."


def about_differences(methods: list[Method]) -> str:
    """Return what the errors of differences are."""
    text = "±: standard error over sentences, and over seeds if a method has several."
    if any(len(method.finished) == 1 for method in methods):
        text += " With one seed, the errors do not include how much another seed would differ."
    return text


def warnings(methods: list[Method]) -> list[str]:
    """Return a warning for each run whose scores contradict each other."""
    found = [run for method in methods for run in method.finished if not run.results.scores.bound_holds]
    return [
        f"WARNING {run.folder}: NLL exceeds −ELBO by {run.results.scores.nll_excess}, which a correct estimate does"
        " not."
        for run in found
    ]


def shown(value: object) -> str:
    """Format a value of a table; None is a dash."""
    return "–" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def units(method: Method) -> str:
    """Format the active units of a method's finished runs: ``2 of 16``."""
    scores = [run.results.scores for run in method.finished]
    found = method.over_seeds([each.active_units for each in scores])
    spread = "" if found.spread is None else f" ({found.spread:.1f})"
    return f"{found.mean:g} of {len(scores[0].kl_per_dimension)}" + spread


_RUN_HEADER = ["run", "method", "seed", "pretraining", "VAE", "scored", "hours", "trained on", "commit"]


def runs(methods: list[Method]) -> Part:
    """Return the table of all runs."""
    return Part("The runs", "", _RUN_HEADER, [_run(method, run) for method in methods for run in method.runs])


def _run(method: Method, run: Run) -> Line:
    commit = (run.environment.commit or "–")[:12]
    cells = [
        str(run.folder), method.name, str(run.config.seed), _stage(run, "pretrain"), _stage(run, "train"), _best(run),
        f"{run.hours:.2f}", _machine(run), commit,
    ]  # fmt: skip
    return Line(cells, aside=not isinstance(run, FinishedRun))


def _stage(run: Run, name: str) -> str:
    if name == "pretrain" and run.config.pretrained is not None:
        return f"from {Path(run.config.pretrained).name}"
    if getattr(run.config, name).max_epochs == 0:
        return "–"
    rows = [row for row in run.epochs if row.stage == name]
    ended = [end for end in run.results.stages if end.stage == name] if isinstance(run, FinishedRun) else []
    if not ended:
        return f"{counted(len(rows), 'epoch')} so far" if rows else "not started"
    return f"{counted(ended[0].epochs, 'epoch')}, " + ("converged" if ended[0].converged else "its limit")


def _best(run: Run) -> str:
    if not isinstance(run, FinishedRun):
        return "–"
    best = run.results.stages[-1].best_epoch
    return "the last epoch: none qualified as the best" if best is None else f"epoch {best}"


def _machine(run: Run) -> str:
    found = run.environment
    return f"{found.processes}, {found.device}; torch {found.packages.get('torch', '–')}, Python {found.python}"
