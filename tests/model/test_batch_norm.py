"""Batch normalisation of the posterior mean, against torch's own. Over ranks: tests/distributed/test_batch_norm.py."""

import math

import pytest
import torch
from torch import nn

from distvae.methods.kl import kl_per_dimension
from distvae.model.batch_norm import EPSILON, MOMENTUM, BatchNorm

FINITE = torch.tensor(True)


def pair(scale: float = 0.6) -> tuple[BatchNorm, nn.BatchNorm1d]:
    """Ours and torch's of three dimensions in float64, with the same β."""
    ours, theirs = BatchNorm(3, scale).double(), nn.BatchNorm1d(3, eps=EPSILON, momentum=MOMENTUM).double()
    nn.init.constant_(theirs.weight, scale).requires_grad_(False)
    for layer in (ours.shift, theirs.bias):
        layer.data.copy_(torch.tensor([0.5, -1.0, 2.0]))
    return ours, theirs


def means(seed: int, size: int = 7) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    center, spread = torch.tensor([3.0, 0.0, -20.0]).double(), torch.tensor([1.0, 1e-3, 5.0]).double()
    return (center + spread * torch.randn(size, 3, generator=draw, dtype=torch.float64)).requires_grad_()


def test_it_is_torchs_batch_norm_with_a_fixed_weight():
    ours, theirs = pair()
    for seed in range(4):
        one, other = means(seed), means(seed)
        weight = torch.randn(7, 3, generator=torch.Generator().manual_seed(9 + seed), dtype=torch.float64)
        results = ours(one), theirs(other)
        torch.testing.assert_close(*results, rtol=0, atol=1e-9)
        for result in results:
            (result * weight).square().sum().backward()
        ours.end_step(FINITE)
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-8, atol=1e-6)
        torch.testing.assert_close(ours.shift.grad, theirs.bias.grad)
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_variance, theirs.running_var, rtol=1e-9, atol=0)
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(ours(means(5)), theirs(means(5)))


def test_its_gradient_is_that_of_finite_differences():
    ours, _ = pair()
    values = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: ours(x, 4)[:4], (values,))
    assert torch.autograd.gradcheck(lambda x: ours.eval()(x), (values,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1e-4, 1.0, 30.0])
def test_a_batch_has_the_given_mean_and_deviation(dtype, spread):
    """However close together the means of sentences are, and however far from 0."""
    ours = BatchNorm(2, 0.6).to(dtype)
    ours.shift.data = torch.tensor([0.25, -3.0], dtype=dtype)
    draw = torch.randn(64, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    result = ours((100 * spread + spread * draw).to(dtype))
    assert result.dtype == dtype
    torch.testing.assert_close(result.mean(0), ours.shift.detach(), rtol=0, atol=1e-4)
    torch.testing.assert_close(result.std(0, correction=0), torch.full((2,), 0.6, dtype=dtype), rtol=1e-3, atol=0)


def test_the_mean_kl_has_its_lower_bound():
    """m γ²/2 + Σ β²/2, and above it what the variances add: nothing where each is 1."""
    ours, _ = pair()
    bound = 3 * 0.6**2 / 2 + ours.shift.square().sum().item() / 2
    for seed in range(5):
        mean = ours(means(seed)).detach()
        log_variance = 2 * torch.randn(7, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        above = (0.5 * (log_variance.exp() - 1 - log_variance)).sum(1).mean().item()
        assert above > 0
        assert kl_per_dimension(mean, log_variance).sum(1).mean().item() == pytest.approx(bound + above, rel=1e-6)
        tight = kl_per_dimension(mean, torch.zeros(7, 3).double()).sum(1).mean().item()
        assert tight == pytest.approx(bound, rel=1e-6)


def test_what_does_not_count_changes_no_statistic():
    ours, _ = pair()
    whole, some = means(0), torch.cat([means(0), torch.full((2, 3), 1e6).double()])
    expected = ours(whole)
    last = ours.last.clone()
    assert torch.equal(ours(some, 7)[:7], expected)
    assert torch.equal(ours.last, last)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_sentences_take_the_running_statistics(count):
    ours, _ = pair()
    ours(means(0))
    ours.end_step(FINITE)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    one = means(1, size=1)
    result = ours(one, count)
    result.sum().backward()
    ours.end_step(FINITE)
    torch.testing.assert_close(one.grad[0], 0.6 / (before["running_variance"] + EPSILON).sqrt())
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    assert torch.equal(result, ours.eval()(one))


def test_a_skipped_step_leaves_the_running_statistics():
    ours, _ = pair()
    ours(means(0))
    ours.end_step(FINITE)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    spoilt = means(1).detach()
    spoilt[2, 1] = math.nan
    assert ours(spoilt)[:, 1].isnan().all()
    ours.end_step(torch.tensor(False))
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_in_evaluation_a_sentence_does_not_depend_on_its_batch():
    ours, _ = pair()
    for seed in range(3):
        ours(means(seed))
        ours.end_step(FINITE)
    ours.eval()
    values = means(7)
    assert torch.equal(torch.cat([ours(value[None]) for value in values]), ours(values))


def test_a_checkpoint_has_the_running_statistics_and_not_those_of_a_step():
    assert list(BatchNorm(3, 0.6).state_dict()) == ["shift", "running_mean", "running_variance"]
