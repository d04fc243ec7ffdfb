"""The aggregate posterior q(z) = 1/N Σ q(z|xₙ) beside the prior p(z) = N(0, I): how far apart they are, and where.

All values are in nats, in float64, and the same on any number of ranks up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distvae.config.schema import EvaluationConfig
from distvae.data.batches import Batch
from distvae.data.sentences import Sentences
from distvae.distributed.ranks import Ranks
from distvae.evaluation import scoring
from distvae.evaluation.mixture import Mixture
from distvae.evaluation.scores import Estimate, mean_estimate
from distvae.evaluation.scoring import importance_weighted_nll, mixture_densities, mixture_rows
from distvae.model.posterior import Posterior
from distvae.model.vae import TextVAE

# A point is far from q(z) if its density there is below that of all but this share of the sentences' own draws.
FAR = 0.01

# Samples with replacement from which the error of a share of far points is found.
RESAMPLES = 200


@dataclass(frozen=True)
class Divergence:
    """What the KL of a VAE's objective consists of, from one draw of z ~ q(z|x) for each sentence.

    KL(q(z|x)‖p) = MI + TC + Σ_d KL(q(z_d)‖p(z_d)) (Chen et al., 2018), and the last two are KL(q(z)‖p). All under the
    mixture of the same sentences' posteriors, but for ``held_out``.

    Attributes:
        kl: KL(q(z|x)‖p), mean over sentences.
        mutual_information: MI, at most ln N; see ``scoring.mutual_information``.
        total_correlation: TC = KL(q(z) ‖ Π_d q(z_d)).
        dimensions: Σ_d KL(q(z_d)‖p(z_d)).
        per_dimension: the parts of this sum.
        aggregate: KL(q(z)‖p) of these sentences. In expectation at least that of all sentences there might be, because
            KL is convex in q.
        held_out: mean of log q'(z) − log p(z), q' the mixture of other sentences. In expectation at most KL(q(z)‖p) of
            all sentences there might be (Gibbs' inequality).
    """

    kl: Estimate
    mutual_information: Estimate
    total_correlation: Estimate
    dimensions: Estimate
    per_dimension: tuple[Estimate, ...]
    aggregate: Estimate
    held_out: Estimate


def log_prior(z: Tensor) -> np.ndarray:
    """Return log N(z; 0, I): [k, m] → [k]."""
    return _log_prior(z).cpu().numpy()


def _log_prior(z: Tensor) -> Tensor:
    z = z.double()
    return -0.5 * z.square().sum(dim=1) - 0.5 * z.shape[1] * math.log(2 * math.pi)


def log_mixture(
    posterior: Posterior, z: Tensor, ranks: Ranks, on_progress: Callable[[int], None] = lambda done: None
) -> np.ndarray:
    """Return log q(z) of each point under the mixture of posteriors: one collective.

    Args:
        posterior: [N, m] each, the same on every rank.
        z: [k, m], the same on every rank.
        on_progress: called with the number of points since the last call, equally often on every rank.

    Returns:
        [k], the same on every rank.
    """
    posterior, z = Posterior(*(x.double() for x in posterior)), z.double()
    n, size = posterior.mean.shape
    values = torch.zeros(len(z), dtype=torch.float64, device=ranks.device)
    for rows, densities in mixture_densities(posterior, z, ranks):
        values[rows] = torch.logsumexp(densities, dim=1) - math.log(n) - 0.5 * size * math.log(2 * math.pi)
        on_progress((rows.stop - rows.start) * ranks.world_size)
    return ranks.sum(values).cpu().numpy()


def log_marginals(
    posterior: Posterior, z: Tensor, ranks: Ranks, on_progress: Callable[[int], None] = lambda done: None
) -> np.ndarray:
    """Return log q(z_d) of each point and dimension. Arguments are those of ``log_mixture``: one collective.

    Returns:
        [k, m], the same on every rank.
    """
    mean, log_variance, z = (x.double().to(ranks.device) for x in (*posterior, z))
    precision = torch.exp(-log_variance)
    values = torch.zeros_like(z)
    for rows in mixture_rows(len(z), len(mean), ranks):
        for d in range(z.shape[1]):
            distances = (z[rows, d, None] - mean[:, d]).square() * precision[:, d] + log_variance[:, d]
            values[rows, d] = torch.logsumexp(-0.5 * distances, dim=1)
        on_progress((rows.stop - rows.start) * ranks.world_size)
    return ranks.sum(values).cpu().numpy() - math.log(len(mean)) - 0.5 * math.log(2 * math.pi)


def divergence(
    own: np.ndarray, mixture: np.ndarray, marginals: np.ndarray, held_out: np.ndarray, z: Tensor
) -> Divergence:
    """Return the parts of the KL, from densities at one draw of z ~ q(z|x) for each of N sentences.

    Args:
        own: log q(zₙ|xₙ), [N].
        mixture: log q(zₙ), [N].
        marginals: log q(z_d) of each, [N, m].
        held_out: log q'(zₙ) under the mixture of other sentences, [N].
        z: [N, m].
    """
    prior = log_prior(z)
    each = marginals + (0.5 * z.double().square() + 0.5 * math.log(2 * math.pi)).cpu().numpy()
    return Divergence(
        kl=mean_estimate(own - prior),
        mutual_information=mean_estimate(own - mixture),
        total_correlation=mean_estimate(mixture - marginals.sum(axis=1)),
        dimensions=mean_estimate(each.sum(axis=1)),
        per_dimension=tuple(mean_estimate(column) for column in each.T),
        aggregate=mean_estimate(mixture - prior),
        held_out=mean_estimate(held_out - prior),
    )


def log_own(posterior: Posterior, z: Tensor) -> np.ndarray:
    """Return log q(zₙ|xₙ) of a draw of each posterior: [N, m] → [N]."""
    mean, log_variance, z = (x.double() for x in (*posterior, z))
    squares = (z - mean).square() * torch.exp(-log_variance) + log_variance
    return (-0.5 * squares.sum(dim=1) - 0.5 * z.shape[1] * math.log(2 * math.pi)).cpu().numpy()


@dataclass(frozen=True)
class Far:
    """Which points are far from q(z): those below the ``FAR`` quantile of its log density at the sentences' own draws.

    Both under the mixture of other sentences' posteriors, in which none has a component of its own.

    Args:
        own: log q'(zₙ) of a draw of z ~ q(z|x) for each of N held-out sentences, [N].
        seed: of the resamples.
    """

    own: np.ndarray
    seed: int

    def are(self, points: np.ndarray) -> np.ndarray:
        """Return whether each of k points is far: log q' of each, [k]."""
        found: np.ndarray = points < np.quantile(self.own, FAR)
        return found

    def share(self, points: np.ndarray) -> Estimate:
        """Return the share of k points that are far. The error is that over points and sentences, by the bootstrap."""
        rng = np.random.default_rng(self.seed)
        found = [
            np.mean(rng.choice(points, len(points)) < np.quantile(rng.choice(self.own, len(self.own)), FAR))
            for _ in range(RESAMPLES)
        ]
        error = float(np.std(found, ddof=1)) if len(points) > 1 and len(self.own) > 1 else None
        return Estimate(float(np.mean(self.are(points))), error)


def sample_counts(most: int) -> tuple[int, ...]:
    """Return the K of a curve over numbers of importance samples: 1, 5, 20, 50, 200, 500, 2,000 … and the most."""
    counts, power = [1, 5], 10
    while counts[-1] < most:
        counts += [2 * power, 5 * power]
        power *= 10
    return (*(count for count in counts if count < most), most)


def nll_by_samples(log_weights: Tensor, counts: Sequence[int]) -> Tensor:
    """Return −log of the mean weight of K draws, and the effective number of them, for each K.

    Of S draws there are ⌊S/K⌋ sets of K, and each figure is the mean over these sets. The NLL of a larger K is lower in
    expectation (Burda et al., 2016); if K divides it and both divide S, it is for every sentence.

    Args:
        log_weights: [b, S].
        counts: K of each, from 1 to S.

    Returns:
        [2, b, counts]: NLL and effective samples.
    """
    sentences, samples = log_weights.shape
    columns = []
    for count in counts:
        number = samples // count
        nll, effective = importance_weighted_nll(log_weights[:, : number * count].reshape(-1, count))
        columns.append(torch.stack([nll, effective]).view(2, sentences, number).mean(dim=2))
    return torch.stack(columns, dim=2)


@dataclass(frozen=True)
class Curve:
    """NLL by the number K of importance samples, of each sentence.

    Attributes:
        nll: [N, counts], in nats.
        effective: [N, counts]: 1 / Σ w̃², w̃ the normalised weights of K draws.
    """

    nll: np.ndarray
    effective: np.ndarray


def curves(
    model: TextVAE,
    sentences: Sentences,
    settings: EvaluationConfig,
    counts: Sequence[int],
    priors: Sequence[Mixture | None],
    ranks: Ranks,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Curve]:
    """Return the NLL by number of importance samples under each prior, from the draws of ``scoring.score``.

    Args:
        counts: K of each, up to ``settings.importance_samples``.
        priors: a density of z in place of the prior, or None for N(0, I), whose NLL from all samples is that of
            ``scoring.score``.
        on_progress: called with the number of sentences since the last call, equally often on every rank.
    """
    samples = settings.importance_samples

    def weigh(batch: Batch, numbers: np.ndarray) -> Tensor:
        tokens = batch.tokens.to(ranks.device)
        posterior = model.encoder(tokens, batch.lengths.to(ranks.device))
        noise, weights = scoring.weighted_draws(model, tokens, posterior, numbers, settings, samples)
        z = Posterior(posterior.mean[:, None], posterior.log_variance[:, None]).sample(noise).flatten(0, 1)
        columns = []
        for prior in priors:
            shift = 0 if prior is None else prior.log_density(z).view_as(weights) - _log_prior(z).view_as(weights)
            columns += [*nll_by_samples(weights + shift, counts)]
        return torch.cat(columns, dim=1)

    together = scoring.weighted_together(settings, model.latent_size, samples)
    with scoring.exact_inference(model):
        rows = scoring.of_each(
            sentences, together, ranks, model.decoder.pad, 2 * len(counts) * len(priors), weigh, on_progress
        )
    nll, effective = rows.view(len(rows), len(priors), 2, len(counts)).permute(2, 1, 0, 3).numpy()
    return [Curve(*each) for each in zip(nll, effective, strict=True)]
