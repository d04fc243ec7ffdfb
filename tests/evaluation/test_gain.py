"""Gains in NLL by token: integrals by quadrature, exact language models, and figures that are known by construction."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from distvae.evaluation import scoring
from distvae.evaluation.gain import Gain, Gained, TokenScores, prefix_log_weights, token_nll, token_scores
from distvae.evaluation.scores import Estimate
from distvae.evaluation.scoring import importance_log_weights, importance_weighted_nll, score
from distvae.model.posterior import Posterior
from distvae.model.vae import TextVAE
from tests.evaluation.test_scoring import (
    ALONE,
    BOS,
    EOS,
    SETTINGS,
    WORDS,
    A,
    B,
    C,
    blinded,
    encoded,
    nll_by_quadrature,
    normal,
    on_ranks,
    sentences_of,
    tiny_model,
)

LONGEST = 7  # tokens of a sentence of WORDS


@torch.no_grad()
def sharp_model(latent_size: int = 2) -> TextVAE:
    """A model whose tokens have different NLLs."""
    model = tiny_model(latent_size)
    model.decoder.output.weight *= 4
    return model


# -- The NLL of a token ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latent_size", [1, 2])
@torch.no_grad()
def test_the_nll_of_each_token_is_a_ratio_of_integrals(latent_size):
    model, samples = sharp_model(latent_size), 20_000
    tokens, posterior = encoded(model, [B, B, A])
    weights = prefix_log_weights(model.decoder, tokens, posterior, normal(1, samples, latent_size), 64)
    nll, effective = token_nll(weights)
    exact = [nll_by_quadrature(model, tokens[:, : 2 + position], latent_size) for position in range(4)]
    errors = torch.sqrt(1 / effective[0] - 1 / samples)
    assert 4 * errors.max() < 0.1
    for position, error in enumerate(errors):
        assert nll[0, : position + 1].sum().item() == pytest.approx(exact[position], abs=4 * error.item())
    # The tokens differ by more than the errors, so a wrong order would be seen.
    assert np.ptp(np.diff([0.0, *exact])) > 0.3


@torch.no_grad()
def test_a_narrow_posterior_does_not_spoil_the_first_tokens():
    """Draws from a posterior far from the prior alone would give the first token an NLL that is far too high."""
    model, samples = tiny_model(1), 5000
    tokens, posterior = encoded(model, [B, B, A])
    narrow = type(posterior)(posterior.mean + 3, posterior.log_variance - 6)
    exact = nll_by_quadrature(model, tokens[:, :2], 1)
    noise = normal(1, samples, 1)
    nll, effective = token_nll(prefix_log_weights(model.decoder, tokens, narrow, noise, 64))
    assert nll[0, 0].item() == pytest.approx(exact, abs=4 / math.sqrt(effective[0, 0].item()))
    assert effective[0, 0] > samples / 10
    alone, effective = importance_weighted_nll(importance_log_weights(model.decoder, tokens[:, :2], narrow, noise, 64))
    assert alone.item() > exact + 0.5
    assert effective.item() < samples / 100


@torch.no_grad()
def test_weights_without_a_likelihood_have_mean_one():
    """They are densities of the prior over those that the draws come from, whatever the number of draws of each."""
    model = blinded(tiny_model(2))
    tokens = torch.tensor([[BOS, A, EOS]])
    posterior = Posterior(torch.tensor([[1.0, -2.0]]).double(), torch.tensor([[-1.0, -3.0]]).double())
    # −log p(x₁|z) of a z that does not matter is one number.
    constant = model.decoder.token_losses(tokens, torch.zeros(1, 2).double())[0, 0]
    for samples in (20_000, 20_003):
        weights = prefix_log_weights(model.decoder, tokens, posterior, normal(1, samples, 2), 64)[0, :, 0]
        found = torch.exp(weights + constant)
        assert found.mean().item() == pytest.approx(1, abs=4 * found.std().item() / math.sqrt(samples))
        assert found.std() < 2
        assert found.max() <= 5.01  # a fifth of the draws is from the prior


def test_the_tokens_of_a_sentence_add_up_to_its_nll():
    model, sentences = tiny_model(), sentences_of(WORDS)
    settings = replace(SETTINGS, importance_samples=4000)
    found = token_scores(model, sentences, settings, ALONE)
    _, each = score(model, sentences, settings, ALONE, importance_samples=4000)
    assert found.lengths.tolist() == [len(words) + 1 for words in WORDS]
    last = found.effective[np.arange(len(WORDS)), found.lengths - 1]
    assert found.nll.sum(axis=1) == pytest.approx(each.nll, abs=4 * math.sqrt(2 / last.min()))
    assert 4 * math.sqrt(2 / last.min()) < 0.2
    outside = np.arange(LONGEST) >= found.lengths[:, None]
    assert not found.nll[outside].any()
    assert not found.effective[outside].any()
    assert (found.nll[~outside] != 0).all()


def test_a_language_model_is_exact():
    model, sentences = tiny_model(latent_size=0), sentences_of(WORDS)
    found = token_scores(model, sentences, SETTINGS, ALONE)
    _, each = score(model, sentences, SETTINGS, ALONE)
    assert found.effective is None
    assert found.nll.sum(axis=1) == pytest.approx(each.nll, abs=1e-12)
    no_z = torch.zeros(1, 0, dtype=torch.float64)
    logits, _ = model.decoder(torch.tensor([[BOS, A, C]]), no_z, model.decoder.initial_state(no_z))
    by_hand = -torch.log_softmax(logits[0], dim=1)[[0, 1, 2], [A, C, EOS]]
    assert found.nll[0, :3] == pytest.approx(by_hand.detach().numpy(), abs=1e-12)


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_ranks_and_any_chunks_find_the_same(world_size, monkeypatch):
    model, sentences = tiny_model(), sentences_of(WORDS)
    alone = token_scores(model, sentences, SETTINGS, ALONE)
    for found in on_ranks(world_size, lambda rank: token_scores(model, sentences, SETTINGS, rank)):
        np.testing.assert_allclose(found.nll, alone.nll, rtol=0, atol=1e-12)
        np.testing.assert_allclose(found.effective, alone.effective, rtol=1e-9)
    monkeypatch.setattr(scoring, "_DRAWS", 20)  # a sentence at a time
    small = token_scores(model, sentences, replace(SETTINGS, batch_size=1, memory_mb=1), ALONE)
    np.testing.assert_allclose(small.nll, alone.nll, rtol=0, atol=1e-12)


# -- The gain ----------------------------------------------------------------------------------------------------------


def scores_of(rows: list[list[float]], effective: float | None = None) -> TokenScores:
    lengths = np.array([len(row) for row in rows])
    nll = np.zeros((len(rows), lengths.max()))
    for row, values in zip(nll, rows, strict=True):
        row[: len(values)] = values
    return TokenScores(lengths, nll, None if effective is None else np.full(nll.shape, effective))


def test_a_gain_is_found_where_it_is():
    """The model gains 1 nat at the second tokens, and loses as much at the third ones."""
    rng = np.random.default_rng(0)
    baseline = [rng.uniform(2, 5, length).tolist() for length in (1, 1, 2, 2, 3, 3, 3, 4, 5)]
    step = [0.0, 1.0, -1.0, 0.0, 0.0]
    model = [[nats - gained for nats, gained in zip(row, step, strict=False)] for row in baseline]
    gain = Gain.of(scores_of(model, effective=7.0), scores_of(baseline))
    gained = [round(position.gain.mean, 9) for position in gain.positions]
    assert gained == step
    assert [position.count for position in gain.positions] == [9, 7, 5, 2, 1]
    assert [position.first for position in gain.positions] == [1, 2, 3, 4, 5]
    assert gain.positions[1].gain.standard_error == pytest.approx(0, abs=1e-12)  # paired
    assert gain.positions[1].baseline.standard_error > 0.1
    assert gain.positions[4].gain.standard_error is None
    assert [(group.first, group.last, group.count) for group in gain.lengths] == [(1, 2, 4), (3, 3, 3), (4, 5, 2)]
    assert [group.gain.mean for group in gain.lengths] == pytest.approx([0.5, 0, 0], abs=1e-12)
    assert gain.sentences.gain.mean == pytest.approx(2 / 9)
    assert (gain.sentences.first, gain.sentences.last, gain.sentences.count) == (1, 5, 9)
    assert gain.effective == ((7.0,) * 5, None)
    # Positions and groups add up to all.
    total = gain.sentences.gain.mean * 9
    assert sum(each.gain.mean * each.count for each in gain.positions) == pytest.approx(total)
    assert sum(each.gain.mean * each.count for each in gain.lengths) == pytest.approx(total)


def test_sentences_of_one_length_are_one_group():
    rows = [[1.0, 2.0], [3.0, 4.0], [2.0, 2.0]]
    gain = Gain.of(scores_of(rows), scores_of(rows))
    assert [(group.first, group.last, group.count) for group in gain.lengths] == [(2, 2, 3)]
    assert gain.sentences == Gained(2, 2, 3, *[gain.sentences.baseline] * 2, Estimate(0.0, 0.0))


def test_a_model_gains_nothing_over_itself():
    model, sentences = tiny_model(), sentences_of(WORDS)
    own = token_scores(model, sentences, SETTINGS, ALONE)
    gain = Gain.of(own, own)
    assert {each.gain.mean for each in (gain.sentences, *gain.lengths, *gain.positions)} == {0.0}
