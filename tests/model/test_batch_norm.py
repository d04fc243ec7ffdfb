"""Batch normalisation of the posterior mean, against torch's own. Over ranks: tests/distributed/test_batch_norm.py."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call

from distvae.methods.kl import kl_per_dimension
from distvae.model.batch_norm import EPSILON, MOMENTUM, BatchNorm

FINITE = torch.tensor(True)


def pair(learnt: bool = False) -> tuple[BatchNorm, nn.BatchNorm1d]:
    """Ours and torch's of three dimensions in float64, with the same β."""
    ours, theirs = BatchNorm(3, 0.6, learnt).double(), nn.BatchNorm1d(3, eps=EPSILON, momentum=MOMENTUM).double()
    nn.init.constant_(theirs.weight, 0.6).requires_grad_(False)
    if learnt:
        ours.scales.data.copy_(torch.tensor([0.2, 1.5, -0.7]))
    for layer in (ours.shift, theirs.bias):
        layer.data.copy_(torch.tensor([0.5, -1.0, 2.0]))
    return ours, theirs


def means(seed: int, size: int = 7) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    center, spread = torch.tensor([3.0, 0.0, -20.0]).double(), torch.tensor([1.0, 1e-3, 5.0]).double()
    return (center + spread * torch.randn(size, 3, generator=draw, dtype=torch.float64)).requires_grad_()


def rescaled(scales: torch.Tensor) -> torch.Tensor:
    """γ_d of DU-VAE, with the root mean square 0.6."""
    return 0.6 * scales / scales.square().mean().sqrt()


@pytest.mark.parametrize("learnt", [False, True])
def test_it_is_torchs_batch_norm_with_a_fixed_or_rescaled_weight(learnt):
    ours, theirs = pair(learnt)
    scales = ours.scales.detach().clone().requires_grad_() if learnt else None
    for seed in range(4):
        one, other = means(seed), means(seed)
        weight = torch.randn(7, 3, generator=torch.Generator().manual_seed(9 + seed), dtype=torch.float64)
        replaced = {"weight": rescaled(scales)} if learnt else {}
        results = ours(one), functional_call(theirs, replaced, (other,))
        torch.testing.assert_close(*results, rtol=0, atol=1e-9)
        for result in results:
            (result * weight).square().sum().backward()
        ours.end_step(FINITE)
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-8, atol=1e-6)
        torch.testing.assert_close(ours.shift.grad, theirs.bias.grad)
        if learnt:
            torch.testing.assert_close(ours.scales.grad, scales.grad)
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        torch.testing.assert_close(ours.running_variance, theirs.running_var, rtol=1e-9, atol=0)
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(ours(means(5)), functional_call(theirs, replaced, (means(5),)))


def test_learnt_deviations_move_as_if_they_were_rescaled_in_place():
    """To first order in the learning rate: the authors of DU-VAE write the rescaled weights back before each step."""
    apart = []
    for learning_rate in (1e-4, 1e-5):
        ours, theirs = pair(learnt=True)
        start = rescaled(ours.scales.data)
        for layer, weight in ((ours, ours.scales), (theirs, theirs.weight.requires_grad_())):
            weight.data.copy_(start)
            (layer(means(0)).square().sum(0) * torch.tensor([1.0, 2.0, -3.0])).sum().backward()
            weight.data -= learning_rate * weight.grad
        found, expected = rescaled(ours.scales.data), rescaled(theirs.weight.data)
        apart.append(((found - expected).norm() / (expected - start).norm()).item())
    assert apart[0] < 0.01
    assert apart[1] == pytest.approx(apart[0] / 10, rel=0.1)


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


@pytest.mark.parametrize("learnt", [False, True])
def test_the_mean_kl_has_its_lower_bound(learnt):
    """m γ²/2 + Σ β²/2, and above it what the variances add: nothing where each is 1."""
    ours, _ = pair(learnt)
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
    assert list(BatchNorm(3, 0.6, learnt=True).state_dict()) == ["shift", "scales", "running_mean", "running_variance"]
