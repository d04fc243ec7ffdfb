"""Scores of a model on a split: −ELBO, importance-weighted NLL, perplexity, active units, mutual information.

Every rank scores its share of each batch and writes it into its rows of a table; one sum over ranks completes the
table, and all statistics come from the whole of it. So each sentence counts exactly once whatever the number of ranks,
and what is drawn for a sentence depends on the seed and the sentence's number alone. All is in nats and float32 or
better, whatever precision training used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from distvae.config.schema import Config, EvaluationConfig
from distvae.data import captions
from distvae.data.batches import Batch, collate, evaluation_plan, share
from distvae.data.vocabulary import Vocabulary
from distvae.distributed.runtime import Runtime, has_bf16
from distvae.evaluation.liveness import Latent, judge
from distvae.methods.kl import kl_per_dimension
from distvae.model.draws import sentence_noise
from distvae.model.vae import Decoder, Posterior, TextVAE

if TYPE_CHECKING:  # `datasets` takes a second to import, which samples and reports need not wait for
    from distvae.data.corpus import Sentences

# A dimension is active when its posterior mean varies by more than this over the data (Burda et al., 2016).
ACTIVE_VARIANCE = 0.01

# Draws of z set against the whole mixture at once: as many as fit into this many values of float64, some 100 MiB.
_MIXTURE_VALUES = 2**22

# Draws of importance sampling that a rank's batch has at most: seconds of work, for signals are heard between batches.
# More are no faster.
_DRAWS = 2**13

# Nats that float32 cannot hold by far, so that the square of any score can be written down.
LARGEST_SCORE = 1e60

# Copies of the draws of importance sampling that its arithmetic holds at a time.
_COPIES = 6


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
    nll: np.ndarray | None  # None where none was asked for


@dataclass(frozen=True)
class Floor:
    """What no model can beat on these sentences in expectation: −log p*(x) of the grammar they were drawn from."""

    nll: Estimate
    ppl: Estimate


def evaluate(
    model: TextVAE,
    sentences: Sentences,
    settings: EvaluationConfig,
    runtime: Runtime,
    importance_samples: int = 0,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Scores:
    """Score a split: ``score`` without the single sentences."""
    return score(model, sentences, settings, runtime, importance_samples, on_progress)[0]


def score(
    model: TextVAE,
    sentences: Sentences,
    settings: EvaluationConfig,
    runtime: Runtime,
    importance_samples: int = 0,
    on_progress: Callable[[int], None] = lambda done: None,
) -> tuple[Scores, SentenceScores]:
    """Score every sentence once, on all ranks together.

    Args:
        model: not wrapped for training.
        importance_samples: K of the NLL; 0 leaves NLL and PPL out.
        on_progress: told how many sentences of the split have been scored since the last call; as often on every rank,
            and also, of none, while their mutual information is found.

    Returns:
        The same on every rank.
    """
    training = model.training
    model.eval()
    try:
        # Some GPUs would otherwise run an LSTM's float32 with 10 bits of mantissa.
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            table = _score(model, sentences, settings, runtime, importance_samples, on_progress)
            information = mutual_information(table.posterior, table.z, runtime, lambda: on_progress(0))
    finally:
        model.train(training)
    return _summary(table, information, settings.seed, importance_samples), SentenceScores(
        tokens=table.tokens,
        re=table.re,
        kl=kl_per_dimension(*table.posterior).sum(dim=1).numpy(),
        mutual_information=information,
        nll=table.nll if importance_samples else None,
    )


def floor(
    sentences: Sentences,
    vocabulary: Vocabulary,
    runtime: Runtime,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Floor:
    """The exact floor under NLL and PPL of sentences of the built-in captions; each rank computes its share: one
    collective."""
    nll = torch.zeros(len(sentences), dtype=torch.float64)
    mine = share(len(sentences), runtime.rank, runtime.world_size)
    for number in range(mine.start, mine.stop):
        nll[number] = -captions.log_probability(vocabulary.decode(sentences[number]))
        on_progress(runtime.world_size)
    found = runtime.sum(nll.to(runtime.device)).cpu().numpy()
    return Floor(mean_estimate(found), perplexity(found, sentences.lengths - 1))


def importance_log_weights(
    decoder: Decoder, tokens: Tensor, posterior: Posterior, noise: Tensor, memory_mb: int, bf16: bool = False
) -> Tensor:
    """log p(x|z) p(z) / q(z|x) of each draw, z = μ + σ ⊙ ε.

    Args:
        tokens: [b, L].
        posterior: of these sentences, each [b, m].
        noise: ε, [b, K, m].
        memory_mb: bound on a chunk's hidden states, and on its logits where these are kept, in MiB; changes no value.
        bf16: decode under autocast; losses and weights are float32 and float64 all the same.

    Returns:
        [b, K], float64.
    """
    sentences, samples, _ = noise.shape
    steps, values = tokens.shape[1] - 1, 12 * decoder.output.in_features
    if not decoder.output.fused:
        values += 3 * decoder.output.out_features
    chunk = max(1, memory_mb * 2**20 // (4 * steps * values))
    z = Posterior(posterior.mean[:, None], posterior.log_variance[:, None]).sample(noise)
    prior_to_posterior = 0.5 * (noise.double().square() - z.double().square()).sum(dim=2)
    prior_to_posterior += 0.5 * posterior.log_variance.double().sum(dim=1, keepdim=True)
    z = z.flatten(0, 1)
    sentence = torch.arange(sentences, device=z.device).repeat_interleave(samples)
    with torch.autocast(z.device.type, torch.bfloat16, enabled=bf16):
        log_likelihood = [
            -decoder.reconstruction(tokens[sentence[i : i + chunk]], z[i : i + chunk]).double()
            for i in range(0, len(z), chunk)
        ]
    return torch.cat(log_likelihood).view(sentences, samples) + prior_to_posterior


def importance_weighted_nll(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """−log of the mean weight, and the effective number of draws 1 / Σ w̃²: [b, K] → [b], [b]."""
    log_sum = torch.logsumexp(log_weights, dim=1)
    effective = torch.exp(2 * log_sum - torch.logsumexp(2 * log_weights, dim=1))
    return math.log(log_weights.shape[1]) - log_sum, effective


def mutual_information(
    posterior: Posterior, z: Tensor, runtime: Runtime, on_progress: Callable[[], None] = lambda: None
) -> np.ndarray:
    """log q(zᵢ|xᵢ) − log q(zᵢ) of each sentence in nats, q(z) the mixture of all N posteriors.

    Its mean estimates I(x; z) = mean KL(q(z|x) ‖ p) − KL(q(z) ‖ p) (Hoffman and Johnson, 2016). Both terms use the same
    draw, so that each value, and with it the mean, is at most ln N.

    Args:
        posterior: [N, m] each, the same on every rank; float64, for the squares are expanded.
        z: one draw of each posterior, [N, m].
        on_progress: called between chunks, as often on every rank.

    Returns:
        [N], the same on every rank; each rank computes its share: one collective.
    """
    n = len(z)
    mine = share(n, runtime.rank, runtime.world_size)
    mean, log_variance, z = (x.to(runtime.device) for x in (posterior.mean, posterior.log_variance, z))
    precision = torch.exp(-log_variance)
    constant = (precision * mean.square() + log_variance).sum(dim=1)
    values = torch.zeros(n, dtype=torch.float64, device=runtime.device)
    chunk = max(1, _MIXTURE_VALUES // n)
    largest = -(-n // runtime.world_size)  # of the ranks' shares
    for done in range(0, largest, chunk):
        if done:
            on_progress()
        rows = slice(min(mine.start + done, mine.stop), min(mine.start + done + chunk, mine.stop))
        log_density = -0.5 * (z[rows].square() @ precision.T - 2 * z[rows] @ (precision * mean).T + constant)
        own = log_density.gather(1, torch.arange(n, device=z.device)[rows, None]).squeeze(1)
        values[rows] = own - torch.logsumexp(log_density, dim=1) + math.log(n)
    return runtime.sum(values).cpu().numpy()


@dataclass(frozen=True)
class _Table:
    """A row per sentence, whole on every rank, float64."""

    tokens: np.ndarray  # [N]
    re: np.ndarray  # [N]
    rounded_re: np.ndarray  # [N], in the NLL's precision
    nll: np.ndarray  # [N]
    effective: np.ndarray  # [N]
    posterior: Posterior  # [N, m] each
    z: Tensor  # [N, m]


def _score(
    model: TextVAE,
    sentences: Sentences,
    settings: EvaluationConfig,
    runtime: Runtime,
    importance_samples: int,
    on_progress: Callable[[int], None],
) -> _Table:
    rows = torch.zeros(len(sentences), 6 + 3 * model.latent_size, dtype=torch.float64)
    batch_size = settings.batch_size
    if importance_samples:
        # As many sentences at once as their draws fit into the limit, some copies of them counted.
        fitting = settings.memory_mb * 2**20 // (_COPIES * 8 * model.latent_size)
        batch_size = min(batch_size, max(1, min(_DRAWS, fitting) // importance_samples))
    for numbers in evaluation_plan(sentences.lengths, batch_size * runtime.world_size):
        mine = share(len(numbers), runtime.rank, runtime.world_size)
        if mine.stop > mine.start:
            batch = collate(sentences, numbers, mine, model.decoder.pad)
            rows[numbers[mine]] = _score_batch(
                model, batch, numbers[mine], settings, importance_samples, runtime.device
            )
        on_progress(len(numbers))
    rows = runtime.sum(rows.to(runtime.device)).cpu()
    seen, tokens, re, rounded_re, nll, effective = rows[:, :6].numpy().T
    assert (seen == 1).all(), "a sentence was scored twice or not at all"
    mean, log_variance, z = rows[:, 6:].split(model.latent_size, dim=1)
    return _Table(tokens, re, rounded_re, nll, effective, Posterior(mean, log_variance), z)


def _score_batch(
    model: TextVAE,
    batch: Batch,
    numbers: np.ndarray,
    settings: EvaluationConfig,
    importance_samples: int,
    device: torch.device,
) -> Tensor:
    """Rows of the table: seen, tokens, RE, RE in the NLL's precision, NLL, effective samples, μ, log σ², z:
    [b, 6 + 3m], float64."""
    tokens, lengths = batch.tokens.to(device), batch.lengths.to(device)
    posterior = model.encoder(tokens, lengths)
    shape = tuple(posterior.mean.shape[1:])
    z = posterior.sample(sentence_noise(numbers, shape, device, settings.seed, "elbo"))
    re = rounded_re = model.decoder.reconstruction(tokens, z)
    nll = effective = torch.zeros_like(re)
    if importance_samples:
        bf16 = settings.mixed_precision == "bf16" and has_bf16(device)
        if bf16:
            with torch.autocast(device.type, torch.bfloat16):
                rounded_re = model.decoder.reconstruction(tokens, z)
        noise = sentence_noise(numbers, (importance_samples, *shape), device, settings.seed, "nll")
        weights = importance_log_weights(model.decoder, tokens, posterior, noise, settings.memory_mb, bf16)
        nll, effective = importance_weighted_nll(weights)
    columns = [torch.ones_like(re), lengths - 1, re, rounded_re, nll, effective]
    return torch.cat([torch.stack([c.double() for c in columns], 1), *(x.double() for x in (*posterior, z))], 1).cpu()


def _summary(table: _Table, information: np.ndarray, seed: int, importance_samples: int) -> Scores:
    kl_dimensions = kl_per_dimension(*table.posterior).numpy()
    kl = kl_dimensions.sum(axis=1)
    neg_elbo = table.re + kl
    weighted = importance_samples > 0
    return Scores(
        sentences=len(table.re),
        tokens=int(table.tokens.sum()),
        re=mean_estimate(table.re),
        kl=mean_estimate(kl),
        neg_elbo=mean_estimate(neg_elbo),
        elbo_ppl=perplexity(neg_elbo, table.tokens),
        active_units=active_units(table.posterior.mean.numpy()),
        mutual_information=mean_estimate(information),
        kl_per_dimension=tuple(kl_dimensions.mean(axis=0).tolist()),
        seed=seed,
        importance_samples=importance_samples,
        nll=mean_estimate(table.nll) if weighted else None,
        ppl=perplexity(table.nll, table.tokens) if weighted else None,
        effective_samples=float(table.effective.mean()) if weighted else None,
        nll_excess=mean_estimate(table.nll - table.rounded_re - kl) if weighted else None,
    )


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
