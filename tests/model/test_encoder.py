import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distvae.model.encoder import pool
from tests.model.tiny import POOLED, SENTENCES, normal, padded, posterior_by_hand, tiny_model


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
