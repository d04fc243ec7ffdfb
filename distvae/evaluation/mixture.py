"""A mixture of Gaussians in place of the prior, fitted to z of real sentences by scikit-learn.

The prior under which a trained decoder and encoder have the highest ELBO is the aggregate posterior q(z), the mean of
the posteriors of all sentences (Tomczak & Welling, 2018). A mixture of a few Gaussians that is fitted to it afterwards
gives a density to draw from (Ghosh et al., 2020).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distvae.model.draws import generator, seed_of_numpy, sentence_noise
from distvae.model.posterior import Posterior
from distvae.system.errors import UserError

# Number of Gaussians unless it is chosen, that of Ghosh et al. (2020).
COMPONENTS = 10

# Sentences that a mixture is fitted to, at most: more make no better one, and would take minutes to encode.
SENTENCES = 50_000


@dataclass(frozen=True)
class Mixture:
    """A density r(z) = Σ_c w_c N(z; μ_c, Σ_c). All in float64, in CPU memory.

    Attributes:
        weights: [c].
        means: [c, m].
        factors: lower triangular L with Σ = L Lᵀ, [c, m, m].
    """

    weights: Tensor
    means: Tensor
    factors: Tensor

    def log_density(self, z: Tensor) -> Tensor:
        """Return log r(z): [n, m] → [n], float64, on the device of z."""
        z = z.double()
        parts = []
        for weight, mean, factor in zip(
            *(x.to(z.device) for x in (self.weights, self.means, self.factors)), strict=True
        ):
            white = torch.linalg.solve_triangular(factor, (z - mean).T, upper=False)
            constant = weight.log() - factor.diagonal().log().sum() - 0.5 * len(mean) * math.log(2 * math.pi)
            parts.append(constant - 0.5 * white.square().sum(dim=0))
        return torch.logsumexp(torch.stack(parts), dim=0)

    def draws(self, count: int, seed: int) -> Tensor:
        """Draw z: [count, m], float64. A larger count begins with the draws of a smaller one."""
        cpu = torch.device("cpu")
        rows = [generator(cpu, seed, "mixture component", number) for number in range(count)]
        shares = torch.tensor([torch.rand((), generator=row, dtype=torch.float64).item() for row in rows])
        total = self.weights.cumsum(dim=0)
        chosen = torch.searchsorted(total, shares.double() * total[-1], right=True).clamp(max=len(total) - 1)
        noise = sentence_noise(range(count), tuple(self.means.shape[1:]), cpu, seed, "mixture").double()
        return self.means[chosen] + (self.factors[chosen] @ noise[:, :, None]).squeeze(2)


def chosen(sentences: int, seed: int) -> np.ndarray:
    """Return the numbers of the sentences of train to fit a mixture to: all, or ``SENTENCES`` drawn at random."""
    if sentences <= SENTENCES:
        return np.arange(sentences)
    return np.sort(np.random.default_rng(seed).choice(sentences, SENTENCES, replace=False))


def fit(posterior: Posterior, components: int, seed: int) -> Mixture:
    """Fit a mixture of Gaussians to the aggregate posterior of N sentences.

    Expectation maximisation fits it to posterior means. Each Gaussian then gets the mean variance of its sentences'
    posteriors besides (the law of total variance), for q(z) is the means' distribution widened by the posteriors. The
    same could be had from draws of z, more slowly and with their noise.

    Args:
        posterior: [N, m] each.
        components: number of Gaussians, each with a covariance of its own. Those without a sentence are dropped.
        seed: of the first guess.

    Raises:
        UserError: there are fewer sentences than Gaussians.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    mean, variance = posterior.mean.double().cpu().numpy(), posterior.log_variance.double().exp().cpu().numpy()
    if len(mean) < components:
        raise UserError(f"components {components}: there are {len(mean)} sentences to fit Gaussians to; choose fewer")
    # Small matrices gain nothing from threads, and sums do not depend on their number.
    with threadpool_limits(1), warnings.catch_warnings():
        # The fit is good before it no longer moves; and a collapsed model may have fewer means than components.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = GaussianMixture(components, random_state=seed_of_numpy(seed)).fit(mean)
        shares = found.predict_proba(mean)
        kept = shares.sum(axis=0) >= 1
        width = shares.T[kept] @ variance / shares.sum(axis=0)[kept, None]
    covariances = found.covariances_[kept] + width[:, :, None] * np.eye(mean.shape[1])
    parts = found.weights_[kept] / found.weights_[kept].sum(), found.means_[kept], np.linalg.cholesky(covariances)
    return Mixture(*(torch.from_numpy(part) for part in parts))
