"""Gaussians that are fitted to the aggregate posterior."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from distvae.evaluation import mixture
from distvae.evaluation.aggregate import log_prior
from distvae.evaluation.mixture import Mixture, chosen, fit
from distvae.model.posterior import Posterior
from distvae.system.errors import UserError
from tests.evaluation.test_aggregate import normal, posterior_of


def clusters(count: int, seed: int = 0) -> Posterior:
    """Half of the means around (4, 0) with a variance of 0.2, half around (−4, 1) with 0.5; posteriors of 0.3."""
    first = torch.arange(count) % 2 == 0
    spread = torch.where(first, math.sqrt(0.2), math.sqrt(0.5))[:, None].double()
    centre = torch.where(first[:, None], torch.tensor([4.0, 0.0]), torch.tensor([-4.0, 1.0])).double()
    return posterior_of(centre + spread * normal(count, 2, seed=seed), 0.3)


def example() -> Mixture:
    factors = torch.tensor([[[1.0, 0.0], [0.7, 0.4]], [[0.3, 0.0], [-0.2, 2.0]]], dtype=torch.float64)
    weights, means = torch.tensor([0.25, 0.75]), torch.tensor([[1.0, -1.0], [0.0, 3.0]])
    return Mixture(weights.double(), means.double(), factors)


def test_the_density_is_that_of_torch():
    found, z = example(), normal(50, 2)
    components = MultivariateNormal(found.means, scale_tril=found.factors)
    expected = MixtureSameFamily(Categorical(found.weights), components).log_prob(z)
    torch.testing.assert_close(found.log_density(z), expected, rtol=0, atol=1e-12)


def test_draws_have_the_moments_of_the_density():
    found, count = example(), 20_000
    z = found.draws(count, seed=3)
    mean = found.weights @ found.means
    covariances = found.factors @ found.factors.mT
    apart = found.means - mean
    covariance = (found.weights[:, None, None] * (covariances + apart[:, :, None] * apart[:, None])).sum(dim=0)
    assert (z.mean(dim=0) - mean).abs().max() < 4 * math.sqrt(float(covariance.diagonal().max()) / count)
    torch.testing.assert_close(z.T.cov(), covariance, rtol=0.05, atol=0.05)
    # Of the second, as often as its weight says.
    assert (z[:, 1] > 1).double().mean() == pytest.approx(0.75 * 0.84 + 0.25 * 0.006, abs=0.02)


def test_more_draws_begin_with_those_of_fewer_and_depend_on_the_seed():
    found = example()
    assert (found.draws(9, seed=1)[:4] == found.draws(4, seed=1)).all()
    assert (found.draws(4, seed=1) != found.draws(4, seed=2)).any()


def test_clusters_are_found_with_the_width_of_their_posteriors():
    found = fit(clusters(4000), 2, seed=0)
    order = found.means[:, 0].argsort(descending=True)
    assert found.weights.tolist() == pytest.approx([0.5, 0.5], abs=0.01)
    assert found.means[order] == pytest.approx(torch.tensor([[4.0, 0.0], [-4.0, 1.0]]), abs=0.06)
    covariances = (found.factors @ found.factors.mT)[order]
    for covariance, variance in zip(covariances, (0.2 + 0.3, 0.5 + 0.3), strict=True):
        torch.testing.assert_close(covariance, variance * torch.eye(2).double(), rtol=0, atol=0.05)


def test_one_gaussian_has_the_covariance_of_z():
    """The law of total variance: Cov z = Cov μ + E σ², with posteriors of different widths."""
    mean, variance = normal(500, 3) @ normal(3, 3, seed=1), torch.exp(normal(500, 3, seed=2))
    found = fit(posterior_of(mean, variance), 1, seed=0)
    expected = mean.T.cov(correction=0) + variance.mean(dim=0).diag()
    torch.testing.assert_close(found.factors[0] @ found.factors[0].T, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.means[0], mean.mean(dim=0), rtol=0, atol=1e-9)


def test_posteriors_that_are_the_prior_give_the_prior():
    """Whatever the number of Gaussians, for there are no means to tell apart."""
    for components in (1, 4):
        found = fit(posterior_of(torch.zeros(40, 2), 1.0), components, seed=0)
        z = normal(30, 2)
        assert found.log_density(z).numpy() == pytest.approx(log_prior(z), abs=1e-4)


def test_means_alone_would_lack_the_width_of_posteriors():
    """Held-out draws of z are likely under the fit, as likely as under the density they are from."""
    held_out = clusters(4000, seed=1)
    z = held_out.sample(normal(4000, 2, seed=2))
    found = fit(clusters(4000), 2, seed=0).log_density(z).mean()
    exact = MixtureSameFamily(
        Categorical(torch.tensor([0.5, 0.5], dtype=torch.float64)),
        MultivariateNormal(
            torch.tensor([[4.0, 0.0], [-4.0, 1.0]], dtype=torch.float64),
            torch.stack([0.5 * torch.eye(2), 0.8 * torch.eye(2)]).double(),
        ),
    ).log_prob(z)
    assert found == pytest.approx(exact.mean().item(), abs=0.01)
    of_means = fit(Posterior(clusters(4000).mean, torch.full((4000, 2), -80.0)), 2, seed=0).log_density(z).mean()
    assert of_means < found - 0.3


def test_the_fit_depends_on_its_seed_alone():
    posterior = posterior_of(normal(300, 3), 0.5)
    one, same, other = (fit(posterior, 4, seed) for seed in (0, 0, 1))
    assert all((a == b).all() for a, b in zip(vars(one).values(), vars(same).values(), strict=True))
    assert (one.means != other.means).any()


def test_fewer_sentences_than_gaussians_are_refused():
    with pytest.raises(UserError, match="components 5: there are 4 sentences to fit Gaussians to; choose fewer"):
        fit(posterior_of(normal(4, 2), 1.0), 5, seed=0)


def test_of_many_sentences_some_are_chosen_at_random(monkeypatch):
    assert chosen(7, 0).tolist() == list(range(7))
    monkeypatch.setattr(mixture, "SENTENCES", 5)
    some = chosen(100, 0)
    assert len(set(some.tolist())) == 5
    assert (np.diff(some) > 0).all()
    assert chosen(100, 0).tolist() == some.tolist() != chosen(100, 1).tolist()


def test_the_seed_may_be_of_any_size():
    """The library takes only 32 bits."""
    posterior = clusters(200)
    found = [fit(posterior, 2, seed).log_density(posterior.mean) for seed in (0, 2**32)]
    torch.testing.assert_close(*found)
