"""Scores of a split and their statistics: means with standard errors, perplexity, active units."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from distvae.config.schema import Config
from distvae.evaluation.liveness import Latent, judge

# A dimension is active if the variance of its posterior mean over the data exceeds this (Burda et al., 2016).
ACTIVE_VARIANCE = 0.01

# Limit in nats, far beyond float32, below which the square of any score is a finite float64.
LARGEST_SCORE = 1e60


def fixed(value: float, decimals: int = 2) -> str:
    """Format a number, and −0 as 0."""
    return f"{round(value, decimals) + 0.0:.{decimals}f}"


@dataclass(frozen=True)
class Estimate:
    """A mean per sentence, or a perplexity, and its standard error over sentences."""

    mean: float
    standard_error: float | None  # None: a single sentence

    def __str__(self) -> str:
        return self.text(2)

    def text(self, decimals: int) -> str:
        """Format it: ``30.44 ± 0.14``."""
        error = "?" if self.standard_error is None else fixed(self.standard_error, decimals)
        return f"{fixed(self.mean, decimals)} ± {error}"

    @property
    def percent(self) -> str:
        """A share in percent: ``30.4 ± 0.1``."""
        error = None if self.standard_error is None else 100 * self.standard_error
        return Estimate(100 * self.mean, error).text(1)


@dataclass(frozen=True)
class Scores:
    """Scores of a split. RE, KL, −ELBO, NLL and MI are in nats per sentence; tokens are words and ``</s>``."""

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
    importance_samples: int = 0  # K; 0: no NLL, or that of a language model, which is exact
    nll: Estimate | None = None
    ppl: Estimate | None = None
    effective_samples: float | None = None  # mean over sentences of 1 / Σ w̃², w̃ the normalised importance weights
    # Paired difference NLL − (−ELBO), at most 0 in expectation, both in the precision of the NLL.
    nll_excess: Estimate | None = None
    characters: int | None = None  # of all sentences, each end included; None: not counted
    bpc: Estimate | None = None

    @property
    def language_model(self) -> bool:
        """Whether the model has no latent variable. Its NLL is its RE."""
        return not self.kl_per_dimension

    @property
    def finite(self) -> bool:
        """Whether every mean is finite."""
        return all(math.isfinite(value.mean) for value in vars(self).values() if isinstance(value, Estimate))

    @property
    def bound_holds(self) -> bool:
        """Whether NLL ≤ −ELBO: False if the paired difference is more than 3 standard errors above 0."""
        excess = self.nll_excess
        return excess is None or excess.standard_error is None or excess.mean <= 3 * excess.standard_error

    def latent(self, config: Config, stage: str) -> Latent | None:
        """Judge the latent of a run by these scores; see ``liveness.judge``."""
        return judge(self.kl.mean, self.mutual_information.mean, self.sentences, config, stage)

    @property
    def contradiction(self) -> str | None:
        """Describe a contradiction between these numbers, as in a damaged file; None if they agree."""
        estimates = {name: value for name, value in vars(self).items() if isinstance(value, Estimate)}
        if self.bpc is not None:
            bits = None if self.nll is None else self.nll.mean * self.sentences / math.log(2)
            if bits is None or not self.characters or not sums_agree(self.bpc.mean * self.characters, bits):
                return f"bpc is {self.bpc.mean}, which contradicts the nats per sentence"
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
        sampled = {self.importance_samples != 0, self.effective_samples is not None}
        if self.language_model:
            exact = self.nll is not None and sums_agree(self.nll.mean, self.re.mean)
            if not exact or self.ppl is None or sampled != {False}:
                return "there is no latent variable, and nll is not re"
        elif len(sampled | {self.nll is not None, self.ppl is not None}) > 1:
            return f"importance_samples is {self.importance_samples}, which contradicts nll or ppl"
        if not 0 <= (self.effective_samples or 0.0) <= self.importance_samples * (1 + 1e-6):
            return f"{self.effective_samples} of {self.importance_samples} importance samples are effective"
        for name, nats in rates.items():
            if nats is not None and not sums_agree(math.log(estimates[name].mean), nats * self.sentences / self.tokens):
                return f"{name} is {estimates[name].mean}, which contradicts the nats per sentence"
        return None

    @classmethod
    def of(
        cls,
        each: SentenceScores,
        *,
        active_units: int,
        kl_per_dimension: tuple[float, ...],
        seed: int,
        importance_samples: int,
        effective_samples: float | None,
        nll_excess: Estimate | None,
    ) -> Scores:
        """Return the scores of a split. Most follow from those of its sentences; the others are given."""
        neg_elbo = each.re + each.kl
        return cls(
            sentences=len(each.tokens),
            tokens=int(each.tokens.sum()),
            re=mean_estimate(each.re),
            kl=mean_estimate(each.kl),
            neg_elbo=mean_estimate(neg_elbo),
            elbo_ppl=perplexity(neg_elbo, each.tokens),
            active_units=active_units,
            mutual_information=mean_estimate(each.mutual_information),
            kl_per_dimension=kl_per_dimension,
            seed=seed,
            importance_samples=importance_samples,
            nll=None if each.nll is None else mean_estimate(each.nll),
            ppl=None if each.nll is None else perplexity(each.nll, each.tokens),
            effective_samples=effective_samples,
            nll_excess=nll_excess,
            characters=None if each.characters is None else int(each.characters.sum()),
            bpc=None if each.nll is None or each.characters is None else bits_per_character(each.nll, each.characters),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"bound_holds": self.bound_holds}


def sums_agree(one: float, other: float) -> bool:
    """Return whether two numbers can be sums of the same values in different orders."""
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6)


@dataclass(frozen=True)
class SentenceScores:
    """Scores of each sentence of a split, in its order, in nats: [N] each, float64.

    Their means are in ``Scores``; paired comparisons of two models need the single sentences.
    """

    tokens: np.ndarray
    re: np.ndarray
    kl: np.ndarray
    mutual_information: np.ndarray  # its mean estimates I(x; z)
    nll: np.ndarray | None = None  # None: not computed
    characters: np.ndarray | None = None  # None: not counted


@dataclass(frozen=True)
class Floor:
    """Lower bound of NLL and PPL in expectation: −log p*(x) under the grammar that the sentences were drawn from."""

    nll: Estimate
    ppl: Estimate


def mean_estimate(values: np.ndarray) -> Estimate:
    """Return the mean and its standard error: [N]."""
    return Estimate(float(np.mean(values)), _standard_error(values))


def perplexity(nats: np.ndarray, tokens: np.ndarray) -> Estimate:
    """Return exp(Σ nats / Σ tokens) and its standard error by the delta method for a ratio of sums: [N], [N]."""
    rate = float(nats.sum() / tokens.sum())
    error = _standard_error(nats - rate * tokens)
    with np.errstate(over="ignore"):
        value = float(np.exp(rate))
    return Estimate(value, None if error is None else value * error / float(tokens.mean()))


def bits_per_character(nats: np.ndarray, characters: np.ndarray) -> Estimate:
    """Return Σ nats / (ln 2 · Σ characters) and its standard error by the delta method: [N], [N]."""
    rate = float(nats.sum() / characters.sum())
    error = _standard_error(nats - rate * characters)
    scale = math.log(2) * float(characters.mean())
    return Estimate(rate / math.log(2), None if error is None else error / scale)


def _standard_error(values: np.ndarray) -> float | None:
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None


def active_units(means: np.ndarray) -> int:
    """Count the dimensions whose posterior mean has a variance above 0.01 over the data: [N, m]."""
    return int((means.var(axis=0) > ACTIVE_VARIANCE).sum())
