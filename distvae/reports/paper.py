"""The paper's Table 1, as printed and as corrected, and the paper's claims, checked on runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from distvae.evaluation.liveness import DEAD, INFORMATIVE, latent_state
from distvae.evaluation.metrics import METRICS
from distvae.evaluation.scores import Estimate
from distvae.reports.methods import FinishedRun, Method, certain, difference, distance, steadiness

# -- Table 1 -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Printed:
    """A row of Table 1, in nats per sentence; None: left blank."""

    nll: float | None
    ppl: float | None
    re: float
    kl: float | None
    neg_elbo: float | None
    elbo_ppl: float | None


TABLE_1 = {
    "AE": Printed(None, None, 27.07, None, None, None),
    "KLA": Printed(37.12, 49.12, 36.04, 0.02, 36.06, 43.81),
    "PT + KLA": Printed(37.38, 50.44, 36.27, 0.01, 36.27, 44.81),
    "PT + KLA + FB": Printed(36.50, 45.99, 31.97, 4.84, 36.81, 47.40),
    "PT + KLA + SFB": Printed(36.75, 47.25, 32.44, 4.29, 36.73, 46.99),
}

# Batch size of the paper's program.
_BATCH = 4


@dataclass(frozen=True)
class Corrected:
    """A row without the errors of the paper's program: bounds of NLL and PPL, and RE."""

    nll: tuple[float, float] | None
    ppl: tuple[float, float] | None
    re: float


def corrected(row: Printed) -> Corrected:
    """Return a printed row without the errors of the paper's program.

    Its importance weights combined draws of z with prefixes of the other sentences in the batch of B, which makes the
    NLL too high by up to ln B. In addition, an NLL cannot exceed −ELBO. The RE of the autoencoder, which has no NLL, is
    that of a batch.
    """
    if row.nll is None or row.ppl is None or row.neg_elbo is None:
        return Corrected(None, None, row.re / _BATCH)
    nll = row.nll - math.log(_BATCH), min(row.nll, row.neg_elbo)
    tokens = row.nll / math.log(row.ppl)
    return Corrected(nll, (math.exp(nll[0] / tokens), math.exp(nll[1] / tokens)), row.re)


# -- The claims --------------------------------------------------------------------------------------------------------

Verdict = Literal["held", "not held", "too close to tell", "no runs"]

# A latent needs this many active units to count as alive.
ALIVE_UNITS = 3


@dataclass(frozen=True)
class Claim:
    """A claim of the paper, and whether runs confirm it."""

    text: str
    verdict: Verdict
    figures: str


def claims(methods: Sequence[Method]) -> list[Claim]:
    """Judge every claim of the paper's results (sections 7 and 8) by the first method of each kind."""
    found: dict[str, Method] = {}
    for method in methods:
        if method.finished:
            found.setdefault(method.kind, method)
    fb, sfb = "PT + KLA + FB", "PT + KLA + SFB"

    def claim(text: str, kinds: Sequence[str], judge: Callable[..., tuple[Verdict, str]]) -> Claim:
        if any(kind not in found for kind in kinds):
            missing = [kind for kind in kinds if kind not in found]
            return Claim(text, "no runs", f"no finished run of {' or '.join(missing)}")
        return Claim(text, *judge(*(found[kind] for kind in kinds)))

    return [
        claim("KL annealing alone collapses", ["KLA"], _collapses),
        claim("so it does after pretraining", ["PT + KLA"], _collapses),
        claim("free bits after both do not", [fb], _lives),
        claim("soft free bits after both do not", [sfb], _lives),
        claim("soft free bits end nearer to λ than free bits", [sfb, fb], _nearer),
        claim("soft free bits have the lower −ELBO", [sfb, fb], lambda a, b: _lower(a, b, "neg_elbo")),
        claim("free bits have the lower PPL", [fb, sfb], lambda a, b: _lower(a, b, "nll")),
        claim("both have a lower PPL than KL annealing: free bits", [fb, "KLA"], lambda a, b: _lower(a, b, "nll")),
        claim("… and soft free bits", [sfb, "KLA"], lambda a, b: _lower(a, b, "nll")),
        claim("the KL is steadier under soft free bits than under free bits", [sfb, fb], _steadier),
        claim("the autoencoder has the lowest RE", ["AE", fb], lambda a, b: _lower(a, b, "re")),
    ]


def _of_all(answers: Sequence[bool]) -> Verdict:
    """Return the verdict over all seeds."""
    return "held" if all(answers) else "too close to tell" if any(answers) else "not held"


def _life(method: Method) -> str:
    kl, information = method.score("kl"), method.score("mutual_information")
    units = method.over_seeds([run.results.scores.active_units for run in method.finished])
    return f"KL {kl}, MI {information}, AU {units.mean:g}"


def _collapses(method: Method) -> tuple[Verdict, str]:
    dead = [run.results.scores.mutual_information.mean < DEAD for run in method.finished]
    return _of_all(dead), f"{_life(method)}; collapsed: MI below {DEAD:g}"


def _lives(method: Method) -> tuple[Verdict, str]:
    figures = f"{_life(method)}; alive: MI of at least {INFORMATIVE:g} of the KL, in {ALIVE_UNITS} units or more"
    return _of_all([_alive(run) for run in method.finished]), figures


def _alive(run: FinishedRun) -> bool:
    scores = run.results.scores
    state = latent_state(scores.kl.mean, scores.mutual_information.mean, scores.sentences)
    return state == "alive" and scores.active_units >= ALIVE_UNITS


def _if_alive(verdict: Verdict, figures: str, *methods: Method) -> tuple[Verdict, str]:
    """Return a verdict on KLs: not held if a latent is not alive, because a KL without information proves nothing."""
    lifeless = "".join(
        f"; {method.name} is not alive in every run ({_life(method)}), so its KL proves nothing"
        for method in methods
        if not all(map(_alive, method.finished))
    )
    return "not held" if verdict == "held" and lifeless else verdict, figures + lifeless


def _off(method: Method) -> float:
    """Return mean KL − λ, in nats."""
    kl, rate = method.score("kl"), method.config.kl.rate
    if kl is None or rate is None:
        raise ValueError(f"{method.name} has no KL or no λ")
    return kl.mean - rate


def _nearer(one: Method, other: Method) -> tuple[Verdict, str]:
    ours, theirs = _off(one), _off(other)
    # The distance grows with the KL above λ, and shrinks with it below.
    signs = 1 if ours >= 0 else -1, 1 if theirs >= 0 else -1
    found = Estimate(abs(ours) - abs(theirs), difference(one, other, "kl", signs).standard_error)
    figures = f"|KL − λ| is {abs(ours):.2f} under {one.name}, {abs(theirs):.2f} under {other.name}: {found}"
    return _if_alive(_judge(found), figures, one, other)


def _lower(one: Method, other: Method, score: Literal["re", "neg_elbo", "nll"]) -> tuple[Verdict, str]:
    found = difference(one, other, score)
    title = METRICS[score].title
    return _judge(found), f"{title} of {one.name} minus that of {other.name}, sentence by sentence: {found}"


def _judge(found: Estimate) -> Verdict:
    """Return whether a difference is below 0."""
    if not certain(found):
        return "too close to tell"
    return "held" if found.mean < 0 else "not held"


def _steadier(one: Method, other: Method) -> tuple[Verdict, str]:
    spreads = [[steadiness(run) for run in method.finished] for method in (one, other)]
    distances = [[distance(run) for run in method.finished] for method in (one, other)]
    each = "; ".join(
        f"{method.name}: standard deviation {_range(spread)}, root mean square distance from λ {_range(off)}"
        for method, spread, off in zip((one, other), spreads, distances, strict=True)
    )
    figures = f"validation KL over the epochs after annealing: {each}"
    if any(map(math.isnan, [*spreads[0], *spreads[1]])):
        return "too close to tell", f"{figures}; –: fewer than two such epochs"
    return _if_alive(_of_all([a < b for a in spreads[0] for b in spreads[1]]), figures, one, other)


def _range(values: Sequence[float]) -> str:
    if any(map(math.isnan, values)):
        return "–"
    low, high = min(values), max(values)
    return f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"
