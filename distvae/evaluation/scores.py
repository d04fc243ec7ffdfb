"""Scores of a split and the statistics that they are made of: estimates, perplexity, active units."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from distvae.config.schema import Config
from distvae.evaluation.liveness import Latent, judge

# A dimension is active when its posterior mean varies by more than this over the data (Burda et al., 2016).
ACTIVE_VARIANCE = 0.01

# Nats that float32 cannot hold by far, so that the square of any score can be written down.
LARGEST_SCORE = 1e60


@dataclass(frozen=True)
class Estimate:
    """A mean per sentence, or a perplexity, and its standard error over sentences."""

    mean: float
    standard_error: float | None  # None: of one sentence alone

    def __str__(self) -> str:
        error = "?" if self.standard_error is None else f"{self.standard_error:.2f}"
        return f"{round(self.mean, 2) + 0.0:.2f} ± {error}"  # + 0.0 makes −0 a 0


@dataclass(frozen=True)
class Scores:
    """What a split scores. RE, KL, −ELBO, NLL and MI in nats a sentence; tokens are words and ``</s>``."""

    sentences: int
    tokens: int
    re: Estimate  # −log p(x|z), one draw of z
    kl: Estimate  # KL(q(z|x) ‖ p(z)), analytic
    neg_elbo: Estimate
    elbo_ppl: Estimate
    active_units: int
    mutual_information: Estimate  # under the posterior mixture of these sentences: at most ln(sentences)
    kl_per_dimension: tuple[float, ...]
    seed: int
    importance_samples: int = 0  # K; 0 where no NLL was asked for
    nll: Estimate | None = None
    ppl: Estimate | None = None
    effective_samples: float | None = None  # mean over sentences of 1 / Σ w̃², w̃ the normalised importance weights
    # NLL − (−ELBO), sentence by sentence, at most 0 in expectation: of both as they are in the NLL's precision.
    nll_excess: Estimate | None = None

    @property
    def finite(self) -> bool:
        """Whether every mean is a number that can be judged and written down."""
        means = (self.re, self.kl, self.neg_elbo, self.elbo_ppl, self.mutual_information, self.nll, self.ppl)
        return all(estimate is None or math.isfinite(estimate.mean) for estimate in means)

    @property
    def bound_holds(self) -> bool:
        """NLL ≤ −ELBO in expectation: False when the paired difference stands 3 standard errors above 0."""
        excess = self.nll_excess
        return excess is None or excess.standard_error is None or excess.mean <= 3 * excess.standard_error

    def latent(self, config: Config, stage: str) -> Latent | None:
        """Judge the latent of a run by these scores; see ``liveness.judge``."""
        return judge(self.kl.mean, self.mutual_information.mean, self.sentences, config, stage)

    @property
    def contradiction(self) -> str | None:
        """What in these numbers one evaluation cannot give, as of a file that was damaged; None where all agree."""
        estimates = {name: value for name, value in vars(self).items() if isinstance(value, Estimate)}
        rates = {"elbo_ppl": self.neg_elbo.mean, "ppl": None if self.nll is None else self.nll.mean}
        if not 0 < self.sentences <= self.tokens:
            return f"{self.tokens} tokens in {self.sentences} sentences"
        for name, value in estimates.items():
            if (value.standard_error or 0.0) < 0:
                return f"the standard error of {name} is {value.standard_error}"
            if abs(value.mean) > LARGEST_SCORE and name not in rates:
                return f"{name} is {value.mean}"
        if not sums_agree(self.neg_elbo.mean, self.re.mean + self.kl.mean):
            return f"neg_elbo is {self.neg_elbo.mean}, and re + kl is {self.re.mean + self.kl.mean}"
        if not sums_agree(self.kl.mean, sum(self.kl_per_dimension)):
            return f"kl is {self.kl.mean}, and its dimensions add up to {sum(self.kl_per_dimension)}"
        if not 0 <= self.active_units <= len(self.kl_per_dimension):
            return f"{self.active_units} of {len(self.kl_per_dimension)} units are active"
        if len({self.importance_samples == 0, self.nll is None, self.ppl is None, self.effective_samples is None}) > 1:
            return f"importance_samples is {self.importance_samples}, which does not go with nll or ppl"
        if not 0 <= (self.effective_samples or 0.0) <= self.importance_samples * (1 + 1e-6):
            return f"{self.effective_samples} of {self.importance_samples} importance samples are effective"
        for name, nats in rates.items():
            if nats is not None and not sums_agree(math.log(estimates[name].mean), nats * self.sentences / self.tokens):
                return f"{name} is {estimates[name].mean}, which does not go with the nats a sentence"
        return None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"bound_holds": self.bound_holds}


def sums_agree(one: float, other: float) -> bool:
    """Return whether two sums of the same numbers, added up in another order, can be these."""
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6)


@dataclass(frozen=True)
class SentenceScores:
    """What each sentence of a split scores, in the split's order, in nats: [N] each, float64. The means are in
    ``Scores``; these set two models' scores of the same sentences against each other."""

    tokens: np.ndarray
    re: np.ndarray
    kl: np.ndarray
    mutual_information: np.ndarray  # whose mean it is
    nll: np.ndarray | None = None  # None where none was asked for


@dataclass(frozen=True)
class Floor:
    """What no model can beat on these sentences in expectation: −log p*(x) of the grammar they were drawn from."""

    nll: Estimate
    ppl: Estimate


def mean_estimate(values: np.ndarray) -> Estimate:
    """Mean and its standard error: [N]."""
    return Estimate(float(np.mean(values)), _standard_error(values))


def perplexity(nats: np.ndarray, tokens: np.ndarray) -> Estimate:
    """exp(Σ nats / Σ tokens), with its standard error by the delta method for a ratio of sums: [N], [N]."""
    rate = float(nats.sum() / tokens.sum())
    error = _standard_error(nats - rate * tokens)
    with np.errstate(over="ignore"):
        value = float(np.exp(rate))
    return Estimate(value, None if error is None else value * error / float(tokens.mean()))


def _standard_error(values: np.ndarray) -> float | None:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def active_units(means: np.ndarray) -> int:
    """Dimensions whose posterior mean has a variance over the data above 0.01: [N, m] → count."""
    return int((means.var(axis=0) > ACTIVE_VARIANCE).sum())
