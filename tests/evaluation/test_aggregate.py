"""The aggregate posterior beside the prior: known figures of constructed posteriors, and integrals."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

from distvae.data.sentences import Sentences
from distvae.evaluation import aggregate, scoring
from distvae.evaluation.aggregate import Divergence, Far, curves, divergence, log_marginals, log_mixture, log_own
from distvae.evaluation.mixture import Mixture
from distvae.evaluation.scores import mean_estimate
from distvae.evaluation.scoring import score
from distvae.model.draws import generator
from distvae.model.posterior import Posterior
from distvae.model.vae import TextVAE
from tests.evaluation.test_scoring import (
    ALONE,
    SETTINGS,
    WORDS,
    Rank,
    blinded,
    nll_by_quadrature,
    on_ranks,
    sentences_of,
    tiny_model,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator("cpu", seed, *shape), dtype=torch.float64)


def posterior_of(mean: Tensor, variance: Tensor | float) -> Posterior:
    variance = torch.as_tensor(variance, dtype=torch.float64).expand_as(mean)
    return Posterior(mean.double(), variance.log())


def found(posterior: Posterior, others: Posterior | None = None, seed: int = 0, ranks: Rank = ALONE) -> Divergence:
    """The parts of the KL by a draw of each posterior."""
    z = posterior.sample(normal(*posterior.mean.shape, seed=seed))
    mixture, marginals = log_mixture(posterior, z, ranks), log_marginals(posterior, z, ranks)
    held_out = log_mixture(others or posterior, z, ranks)
    return divergence(log_own(posterior, z), mixture, marginals, held_out, z)


# -- The parts of the KL -----------------------------------------------------------------------------------------------


def test_posteriors_that_are_the_prior_have_no_part():
    parts = found(posterior_of(torch.zeros(40, 3), 1.0))
    values = [parts.kl, parts.mutual_information, parts.total_correlation, parts.dimensions, parts.aggregate]
    for each in [*values, *parts.per_dimension, parts.held_out]:
        assert (each.mean, each.standard_error) == pytest.approx((0, 0), abs=1e-12)


def test_densities_are_those_of_torch():
    posterior, z = posterior_of(2 * normal(7, 3), torch.exp(normal(7, 3, seed=1))), normal(5, 3, seed=2)
    components = Normal(posterior.mean, torch.exp(posterior.log_variance / 2))
    each = components.log_prob(z[:, None])  # [5, 7, 3]
    assert log_marginals(posterior, z, ALONE) == pytest.approx((each.logsumexp(dim=1) - math.log(7)).numpy(), abs=1e-12)
    joint = each.sum(dim=2).logsumexp(dim=1) - math.log(7)
    assert log_mixture(posterior, z, ALONE) == pytest.approx(joint.numpy(), abs=1e-12)
    own = Independent(components, 1).log_prob(posterior.mean + 1)
    assert log_own(posterior, posterior.mean + 1) == pytest.approx(own.numpy(), abs=1e-12)
    assert aggregate.log_prior(z) == pytest.approx(Normal(0.0, 1.0).log_prob(z).sum(dim=1).numpy(), abs=1e-12)


def test_far_points_have_all_the_information_there_is_and_the_rest_is_of_q():
    """Posteriors at ±r far apart, alike in both dimensions: z_1 gives z_2 away, which is ln 2 of total correlation."""
    count, r, variance = 4000, 50.0, 0.5
    mean = torch.tensor([[r, r], [-r, -r]]).repeat(count // 2, 1)
    parts = found(posterior_of(mean, variance))
    kl = 2 * 0.5 * (r**2 + variance - 1 - math.log(variance))
    assert parts.kl.mean == pytest.approx(kl, abs=4 * parts.kl.standard_error)
    assert parts.mutual_information.mean == pytest.approx(math.log(2), abs=1e-9)
    assert parts.total_correlation.mean == pytest.approx(math.log(2), abs=1e-9)
    # Of a dimension: two far Gaussians in equal shares have ln 2 more entropy than one.
    one = kl / 2 - math.log(2)
    for each in parts.per_dimension:
        assert each.mean == pytest.approx(one, abs=4 * each.standard_error)
    assert parts.dimensions.mean == pytest.approx(sum(each.mean for each in parts.per_dimension), abs=1e-9)
    assert parts.aggregate.mean == pytest.approx(kl - math.log(2), abs=4 * parts.aggregate.standard_error)


def test_the_parts_add_up():
    parts = found(posterior_of(normal(60, 4) @ normal(4, 4, seed=3), torch.exp(normal(60, 4, seed=4))))
    total = parts.total_correlation.mean + parts.dimensions.mean
    assert parts.aggregate.mean == pytest.approx(total, abs=1e-12)
    assert parts.kl.mean == pytest.approx(parts.mutual_information.mean + total, abs=1e-12)


def gaussian_parts(covariance: Tensor) -> tuple[float, float]:
    """TC and Σ_d KL(q(z_d)‖p(z_d)) of a Gaussian q(z) with mean 0."""
    variances = covariance.diagonal()
    total_correlation = 0.5 * (variances.log().sum() - torch.logdet(covariance))
    return float(total_correlation), float(0.5 * (variances - 1 - variances.log()).sum())


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_a_gaussian_has_the_parts_of_its_covariance(correlation):
    """Means from a Gaussian, under wide posteriors: q(z) is all but a Gaussian, factorised or correlated."""
    count, width = 6000, 0.5
    spread = torch.tensor([[0.9, 0.0], [0.0, 1.4]], dtype=torch.float64)
    covariance = spread @ torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64) @ spread
    mean = normal(count, 2, seed=5) @ torch.linalg.cholesky(covariance).T
    others = normal(count, 2, seed=6) @ torch.linalg.cholesky(covariance).T
    parts = found(posterior_of(mean, width), posterior_of(others, width))
    correlated, separate = gaussian_parts(covariance + width * torch.eye(2))
    assert (correlated > 0.1) == (correlation > 0)
    assert parts.total_correlation.mean == pytest.approx(correlated, abs=0.03)
    assert parts.dimensions.mean == pytest.approx(separate, abs=0.05)
    # What is known of all sentences there might be lies between the two.
    exact, room = correlated + separate, 3 * parts.aggregate.standard_error
    assert parts.held_out.mean - room < exact < parts.aggregate.mean + room
    assert parts.held_out.mean < parts.aggregate.mean
    assert room < 0.1


def test_two_components_have_the_kl_of_the_integral():
    count, deviation = 6000, 0.6
    mean = torch.tensor([0.8, -0.8], dtype=torch.float64).repeat(count // 2)[:, None]
    parts = found(posterior_of(mean, deviation**2))
    axis = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    q = Normal(torch.tensor([0.8, -0.8], dtype=torch.float64), deviation)
    mixture = torch.logsumexp(q.log_prob(axis[:, None]), dim=1) - math.log(2)
    exact = float(torch.trapezoid(mixture.exp() * (mixture - Normal(0.0, 1.0).log_prob(axis)), axis))
    assert 0.02 < exact < 0.2
    assert parts.aggregate.mean == pytest.approx(exact, abs=3.5 * parts.aggregate.standard_error)
    assert parts.aggregate.standard_error < 0.01
    assert parts.total_correlation.mean == pytest.approx(0, abs=1e-12)  # there is one dimension


@pytest.mark.parametrize("measure", [log_mixture, log_marginals])
@pytest.mark.parametrize(("points", "rows"), [(11, 1), (11, 4), (2, 100)])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_and_chunks_change_no_density(world_size, points, rows, measure, monkeypatch):
    posterior, z = posterior_of(2 * normal(9, 3), torch.exp(normal(9, 3, seed=1))), normal(points, 3, seed=2)
    expected = measure(posterior, z, ALONE)
    monkeypatch.setattr(scoring, "_MIXTURE_VALUES", rows * 9)
    calls: list[list[int]] = [[] for _ in range(world_size)]
    for values in on_ranks(world_size, lambda rank: measure(posterior, z, rank, calls[rank.rank].append)):
        assert values == pytest.approx(expected, abs=1e-12)
    assert len({len(told) for told in calls}) == 1


# -- Points that are far from q(z) -------------------------------------------------------------------------------------


def test_as_many_prior_draws_as_sentences_are_far_if_q_is_the_prior():
    """Posteriors of train and test with means of variance ½ and variances of ½: q(z) is the prior."""
    train = posterior_of(math.sqrt(0.5) * normal(3000, 2, seed=1), 0.5)
    test = posterior_of(math.sqrt(0.5) * normal(4000, 2, seed=2), 0.5)
    own = log_mixture(train, test.sample(normal(4000, 2, seed=3)), ALONE)
    share = Far(own, seed=0).share(log_mixture(train, normal(4000, 2, seed=4), ALONE))
    assert share.mean == pytest.approx(0.01, abs=3.5 * share.standard_error)
    # Of 4,000 points and of a quantile of as many: √(2 · 0.01 · 0.99 / 4000).
    assert share.standard_error == pytest.approx(0.0022, abs=0.0006)


def test_the_share_of_far_points_is_the_probability():
    """q(z) = N(0, ½²): far is |z| > 2.576 · ½, where N(0, 1) has 19.8%."""
    train, own = posterior_of(torch.zeros(2, 1), 0.25), 0.5 * normal(20_000, 1)
    far = Far(log_mixture(train, own, ALONE), seed=0)
    share = far.share(log_mixture(train, normal(20_000, 1, seed=1), ALONE))
    edge = Normal(0.0, 1.0).icdf(torch.tensor(0.995)) / 2
    exact = float(2 * Normal(0.0, 1.0).cdf(-edge))
    assert exact == pytest.approx(0.198, abs=0.001)
    assert share.mean == pytest.approx(exact, abs=3.5 * share.standard_error)
    assert share.standard_error < 0.02
    assert far.are(log_mixture(train, torch.tensor([[0.0], [1.2], [-1.4], [5.0]]), ALONE)).tolist() == [0, 0, 1, 1]


def test_the_error_is_that_of_repetitions():
    """The bootstrap's error, beside the spread of the share over sets of draws of its own."""
    train = posterior_of(torch.zeros(1, 1), 0.25)

    def share(seed: int):
        own, points = (0.5 * normal(500, 1, seed=seed), normal(400, 1, seed=1000 + seed))
        return Far(log_mixture(train, own, ALONE), seed=0).share(log_mixture(train, points, ALONE))

    shares = [share(seed) for seed in range(60)]
    spread = np.std([each.mean for each in shares], ddof=1)
    assert np.mean([each.standard_error for each in shares]) == pytest.approx(spread, rel=0.35)


def test_a_prior_with_a_hole_is_found():
    """Two clusters at ±3 leave the middle of the prior empty."""
    mean = torch.tensor([3.0, -3.0]).repeat(500)[:, None]
    posterior = posterior_of(mean, 0.1)
    own = log_mixture(posterior, posterior.sample(normal(1000, 1)), ALONE)
    far = Far(own, seed=0)
    assert far.are(log_mixture(posterior, torch.tensor([[0.0], [3.0], [-3.1]]), ALONE)).tolist() == [True, False, False]
    assert far.share(log_mixture(posterior, normal(1000, 1, seed=1), ALONE)).mean > 0.95


def test_one_sentence_has_no_error():
    assert Far(np.zeros(1), seed=0).share(np.array([-1.0, 1.0])).standard_error is None
    assert Far(np.zeros(1), seed=0).share(np.array([-1.0, 1.0])).mean == 0.5


# -- NLL by the number of importance samples ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "counts"),
    [
        (1, (1,)), (3, (1, 3)), (5, (1, 5)), (10, (1, 5, 10)), (20, (1, 5, 20)), (21, (1, 5, 20, 21)),
        (500, (1, 5, 20, 50, 200, 500)), (3000, (1, 5, 20, 50, 200, 500, 2000, 3000)),
    ],
)  # fmt: skip
def test_the_curve_is_at_these_counts(most, counts):
    assert aggregate.sample_counts(most) == counts


def test_known_weights():
    weights = torch.tensor([[1.0, 1.0, 4.0, 2.0, 8.0], [2.0, 2.0, 2.0, 2.0, 2.0]], dtype=torch.float64)
    nll, effective = aggregate.nll_by_samples(weights.log(), (1, 2, 5))
    # Of sets of two, the fifth is left over.
    assert nll[0].tolist() == pytest.approx([-math.log(64) / 5, -math.log(3) / 2, -math.log(16 / 5)])
    assert effective[0].tolist() == pytest.approx([1, (2 + 36 / 20) / 2, 256 / 86])
    assert nll[1].tolist() == pytest.approx([-math.log(2)] * 3)
    assert effective[1].tolist() == pytest.approx([1, 2, 5])


def test_more_samples_are_tighter_for_every_sentence_if_the_counts_divide():
    nll, effective = aggregate.nll_by_samples(3 * normal(50, 200), (1, 5, 20, 200))
    assert (nll.diff(dim=1) < 0).all()
    assert (effective[:, 0] == 1).all()
    assert (effective.mean(dim=0).diff() > 0).all()


def mixture_of(weights: list[float], means: list[list[float]], deviation: float) -> Mixture:
    size = len(means[0])
    factors = deviation * torch.eye(size, dtype=torch.float64).expand(len(means), -1, -1)
    return Mixture(*(torch.tensor(x, dtype=torch.float64) for x in (weights, means)), factors.contiguous())


TWO = mixture_of([0.3, 0.7], [[2.5], [1.0]], 0.7)


@torch.no_grad()
def nll_under(model: TextVAE, tokens: Tensor, prior: Mixture) -> float:
    """−log ∫ p(x|z) r(z) dz by the trapezoid rule."""
    grid = torch.linspace(-9, 9, 3001, dtype=torch.float64)[:, None]
    log_p = -model.decoder.reconstruction(tokens.expand(len(grid), -1), grid)
    components = MultivariateNormal(prior.means, scale_tril=prior.factors).log_prob(grid[:, None])
    log_p += torch.logsumexp(components + prior.weights.log(), dim=1)
    return -float(torch.logsumexp(log_p, dim=0)) - math.log(float(grid[1, 0] - grid[0, 0]))


def test_the_curve_ends_at_the_integral_under_either_prior():
    model, sentences = tiny_model(1), sentences_of(WORDS)
    settings = replace(SETTINGS, importance_samples=4000)
    normal_prior, mixture = curves(model, sentences, settings, (1, 200, 4000), [None, TWO], ALONE)
    rows = [torch.tensor(ids.tolist())[None] for ids in sentences]
    for curve, exact in (
        (normal_prior, [nll_by_quadrature(model, row, 1) for row in rows]),
        (mixture, [nll_under(model, row, TWO) for row in rows]),
    ):
        error = np.sqrt(1 / curve.effective[:, -1])
        assert (np.abs(curve.nll[:, -1] - exact) < 4 * error).all()
        assert error.max() < 0.1
        means = curve.nll.mean(axis=0)
        assert means[0] > means[1] + 0.01
        assert means[1] == pytest.approx(np.mean(exact), abs=0.05)
    assert abs(mixture.nll[:, -1] - normal_prior.nll[:, -1]).max() > 0.2


def test_the_curve_begins_at_the_elbo_and_ends_at_the_nll_of_the_scores():
    model, sentences = tiny_model(), sentences_of(WORDS)
    settings = replace(SETTINGS, importance_samples=2000)
    (curve,) = curves(model, sentences, settings, (1, 2000), [None], ALONE)
    _, each = score(model, sentences, settings, ALONE, 2000)
    assert curve.nll[:, 1] == pytest.approx(each.nll, abs=1e-12)
    # −ELBO has one draw of z where K = 1 here has 2,000.
    difference = mean_estimate(curve.nll[:, 0] - each.re - each.kl)
    assert difference.mean == pytest.approx(0, abs=4 * difference.standard_error)
    assert (curve.effective[:, 0] == 1).all()


def test_the_prior_as_a_mixture_changes_nothing():
    model, sentences = tiny_model(), sentences_of(WORDS)
    standard = mixture_of([0.5, 0.5], [[0.0, 0.0], [0.0, 0.0]], 1.0)
    one, other = curves(model, sentences, SETTINGS, (1, 5, 20), [None, standard], ALONE)
    assert other.nll == pytest.approx(one.nll, abs=1e-12)
    assert other.effective == pytest.approx(one.effective, abs=1e-9)


def test_where_the_posterior_is_the_true_one_the_curve_is_flat():
    model, sentences = blinded(tiny_model()), sentences_of(WORDS)
    (curve,) = curves(model, sentences, SETTINGS, (1, 5, 20), [None], ALONE)
    assert np.ptp(curve.nll, axis=1).max() < 1e-12
    assert curve.effective == pytest.approx(np.array([[1, 5, 20]] * len(WORDS)), abs=1e-9)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_find_the_same_curve(world_size):
    sentences: Sentences = sentences_of(WORDS)
    mixture = mixture_of([0.4, 0.6], [[1.0, 0.0], [-1.0, 0.5]], 0.8)
    work = lambda rank: curves(tiny_model(), sentences, SETTINGS, (1, 5, 20), [None, mixture], rank)  # noqa: E731
    alone = work(ALONE)
    for every in on_ranks(world_size, work):
        for one, other in zip(every, alone, strict=True):
            assert one.nll == pytest.approx(other.nll, abs=1e-12)
            assert one.effective == pytest.approx(other.effective, abs=1e-9)
