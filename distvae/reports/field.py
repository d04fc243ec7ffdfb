"""The field's table: methods ranked by NLL, and what their latent variable gains over a language model without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distvae.evaluation.scores import Estimate
from distvae.reports.methods import FinishedRun, Method, Run, certain, difference

Verdict = Literal["yes", "no", "too close to tell"]


@dataclass(frozen=True)
class Row:
    """A method of the table."""

    method: Method
    rank: int | None  # 1 + the methods that certainly have a lower NLL; None: it has no NLL
    gain: Estimate | None  # NLL of the language model − its own, in nats; None: one of them has no NLL
    states: tuple[str, ...]  # of the latent, of each finished run that has one
    hours: float | None  # per run, with its pretraining; None: that is not among the runs

    @property
    def pays(self) -> Verdict | None:
        """Whether the latent variable lowers the NLL."""
        if self.gain is None:
            return None
        return "too close to tell" if not certain(self.gain) else "yes" if self.gain.mean > 0 else "no"

    @property
    def state(self) -> str | None:
        """The state of the latent, or how many runs have which."""
        counts = Counter(self.states)
        return ", ".join(state if len(counts) == 1 else f"{n} {state}" for state, n in counts.most_common()) or None

    @property
    def alive(self) -> bool | None:
        """Whether the latent is alive in every run; None: there is none."""
        return all(state == "alive" for state in self.states) if self.states else None


def rank(methods: Sequence[Method]) -> list[Row]:
    """Return a row for each method: by NLL, then those without one, then those without a finished run."""
    runs = [run for method in methods for run in method.runs]
    baseline = language_model(methods)
    scored = sorted((method for method in methods if method.of_sentences("nll")), key=_nll)
    others = sorted((method for method in methods if method not in scored), key=lambda method: not method.finished)
    rows = []
    for method in [*scored, *others]:
        better = [other for other in scored if method in scored and _certainly_better(other, method)]
        gain = None
        if baseline is not None and method in scored and not method.config.language_model:
            gain = difference(baseline, method, "nll")
        rows.append(
            Row(
                method,
                1 + len(better) if method in scored else None,
                gain,
                tuple(filter(None, map(_state, method.finished))),
                _hours(method, runs),
            )
        )
    return rows


def language_model(methods: Sequence[Method]) -> Method | None:
    """Return the finished language model with the lowest NLL; None if there is none."""
    found = [method for method in methods if method.config.language_model and method.of_sentences("nll")]
    return min(found, key=_nll, default=None)


def _nll(method: Method) -> float:
    found = method.score("nll")
    assert found is not None
    return found.mean


def _certainly_better(one: Method, other: Method) -> bool:
    found = difference(other, one, "nll")
    return one is not other and found.mean > 0 and certain(found)


def _state(run: FinishedRun) -> str | None:
    """Return the state of a run's latent; None if it has none, or too few sentences to judge."""
    found = run.results.latent or run.results.scores.latent(run.config, run.config.last_stage)
    return None if found is None else found.state


def _hours(method: Method, runs: Sequence[Run]) -> float | None:
    """Return the mean hours of a method's finished runs, with the pretraining that they take from other runs."""
    hours = []
    for run in method.finished:
        source = None if run.config.pretrained is None else _source(run, Path(run.config.pretrained), runs)
        if run.config.pretrained is not None and source is None:
            return None
        hours.append(run.hours + (0.0 if source is None else source.hours_of("pretrain")))
    return sum(hours) / len(hours) if hours else None


def _source(run: Run, pretrained: Path, runs: Sequence[Run]) -> Run | None:
    """Return the run that another takes its pretraining from: in the folder it names, or moved together with it."""
    places = {pretrained.resolve(), (run.folder.parent / pretrained.name).resolve()}
    return next((other for other in runs if other.folder.resolve() in places), None)
