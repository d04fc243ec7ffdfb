import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distvae.methods.kl import kl_per_dimension
from distvae.methods.posteriors import DUPosterior
from distvae.model.draws import Noise
from distvae.model.encoder import above_floor, pool
from tests.model.tiny import POOLED, SENTENCES, SIZES, normal, padded, posterior_by_hand, tiny_model

# The variance of a Gaussian whose entropy is 0.
LEAST = 1 / (2 * math.pi * math.e)


@pytest.mark.parametrize("pooling", POOLED)
def test_encoder_is_the_lstm_equations_up_to_the_end_of_the_sentence(pooling):
    model = tiny_model(POOLED[pooling])
    mean, log_variance = model.encoder(*padded(SENTENCES))
    for i, sentence in enumerate(SENTENCES):
        expected = posterior_by_hand(model, sentence, pooling)
        torch.testing.assert_close(torch.cat([mean[i], log_variance[i]]), expected, rtol=0, atol=1e-14)


def test_poolings_differ():
    posteriors = [tiny_model(sizes).encoder(*padded(SENTENCES)).mean for sizes in POOLED.values()]
    for one in range(3):
        assert not torch.isclose(posteriors[one], posteriors[one - 1]).any()


@pytest.mark.parametrize("pooling", POOLED)
@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(2, 6), min_size=1, max_size=4), width=st.integers(6, 9), data=st.data())
def test_what_is_in_the_padding_does_not_count(pooling, lengths, width, data):
    hidden = normal(len(lengths), width, 3)
    other = hidden.clone()
    for row, length in zip(other, lengths, strict=True):
        # Reorder the padding, and replace some of it by values beyond all others.
        rest = data.draw(st.permutations(range(length, width)))
        row[length:] = row[rest]
        row[length + data.draw(st.integers(0, width - length)) :] = data.draw(st.sampled_from([-1e9, 0.0, 1e9]))
    found = pool(other, torch.tensor(lengths), pooling)
    assert torch.equal(found, pool(hidden, torch.tensor(lengths), pooling))
    for i, length in enumerate(lengths):
        own = pool(hidden[i : i + 1, :length], torch.tensor([length]), pooling)
        torch.testing.assert_close(found[i : i + 1], own, rtol=0, atol=1e-15)


@pytest.mark.parametrize("pooling", POOLED)
def test_gradients_of_pooling_reach_the_states_of_the_sentence_alone(pooling):
    hidden, lengths = normal(3, 5, 4).requires_grad_(), torch.tensor([5, 2, 3])
    assert torch.autograd.gradcheck(lambda states: pool(states, lengths, pooling), hidden)
    pool(hidden, lengths, pooling).sum().backward()
    for i, length in enumerate(lengths):
        torch.testing.assert_close(hidden.grad[i, :length].sum(dim=0), torch.ones(4, dtype=torch.float64))
        assert not hidden.grad[i, length:].any()


def test_a_mean_of_bf16_states_is_summed_in_float32():
    hidden = torch.ones(1, 1000, 1, dtype=torch.bfloat16)
    hidden[0, 0] = 256.0  # bf16 cannot add 1 to it
    found = pool(hidden, torch.tensor([1000]), "mean")
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(1.255)


@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_a_variance_is_raised_by_its_floor_and_dropped_by_its_mask(alpha):
    """In units of 1/(2πe). Dropping a variance leaves its expectation as it is."""
    options, log_variance = DUPosterior(variance_floor=alpha, variance_dropout=0.3), 3 * normal(4, 5)
    variance, floor = log_variance.exp(), alpha * LEAST
    keep = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) < 0.7
    found, plain = (above_floor(log_variance, options, mask).exp() for mask in (keep, None))
    torch.testing.assert_close(plain, variance + floor)
    torch.testing.assert_close(found, variance * keep / 0.7 + floor)
    always, never = (above_floor(log_variance, options, torch.full((4, 5), kept)).exp() for kept in (True, False))
    torch.testing.assert_close(0.7 * always + 0.3 * never, plain)


def test_a_dropped_variance_has_an_entropy_of_0_and_a_finite_kl():
    """And no gradient, however small or large it was."""
    log_variance = torch.tensor([[-300.0, -5.0, 0.0, 80.0]], requires_grad=True)
    found = above_floor(log_variance, DUPosterior(), torch.zeros(1, 4, dtype=torch.bool))
    torch.testing.assert_close(0.5 * (found + math.log(2 * math.pi * math.e)), torch.zeros(1, 4))
    kl = kl_per_dimension(torch.zeros(1, 4), found)
    torch.testing.assert_close(kl, torch.full((1, 4), 0.5 * (LEAST - 1 - math.log(LEAST))))
    kl.sum().backward()
    assert torch.equal(log_variance.grad, torch.zeros(1, 4))


def test_gradients_of_variances_are_those_of_finite_differences():
    keep = torch.tensor([[True, False, True]])
    for mask in (keep, None):
        assert torch.autograd.gradcheck(
            lambda x, m=mask: above_floor(x, DUPosterior(), m), normal(2, 3).requires_grad_()
        )


def test_variances_are_dropped_in_training_forwards_alone():
    model, inputs = tiny_model(replace(SIZES, posterior=DUPosterior())), padded(SENTENCES)
    raw = model.encoder.outputs(*inputs)[:, 2:].exp()
    keep = torch.tensor([[True, False], [False, True], [True, True], [False, False]])
    _, _, trained = model(*inputs, Noise(normal(4, 2), keep_variances=keep))
    torch.testing.assert_close(trained.exp(), raw * keep / 0.8 + LEAST)
    torch.testing.assert_close(model.encoder(*inputs).log_variance.exp(), raw + LEAST)
