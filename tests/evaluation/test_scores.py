import math
from dataclasses import replace

import numpy as np
import pytest

from distvae.evaluation.scores import (
    Estimate,
    Scores,
    SentenceScores,
    active_units,
    bits_per_character,
    mean_estimate,
    perplexity,
)

# Two sentences of three tokens.
SCORES = Scores(
    sentences=2, tokens=6, re=Estimate(9.0, 0.1), kl=Estimate(3.0, 0.1), neg_elbo=Estimate(12.0, 0.1),
    elbo_ppl=Estimate(math.exp(4.0), 1.0), active_units=1, mutual_information=Estimate(0.5, 0.1),
    kl_per_dimension=(1.0, 2.0), seed=0,
)  # fmt: skip


def test_active_units_are_the_dimensions_whose_mean_varies_by_more_than_a_hundredth():
    swing = np.tile([1.0, -1.0], 500)
    deviations = np.sqrt([0.0, 1e-8, 0.0099, 0.00999, 0.01001, 0.0101, 1.0])
    means = 3 + swing[:, None] * deviations
    assert means.var(axis=0) == pytest.approx(deviations**2)
    assert active_units(means) == 3


def test_mean_and_its_standard_error():
    assert mean_estimate(np.array([1.0, 2.0, 3.0, 4.0])) == Estimate(2.5, pytest.approx(math.sqrt(5 / 3) / 2))
    assert mean_estimate(np.array([3.0])) == Estimate(3.0, None)


def test_perplexity_of_sentences_of_one_length_is_that_of_the_mean():
    nats = np.array([10.0, 14.0, 13.0, 9.0])
    found = perplexity(nats, np.full(4, 5))
    mean = mean_estimate(nats)
    assert found.mean == pytest.approx(math.exp(46 / 20))
    assert found.standard_error == pytest.approx(found.mean * mean.standard_error / 5)


def test_perplexity_of_one_cost_a_token_has_no_error():
    found = perplexity(np.array([2.0, 6.0, 8.0]), np.array([1, 3, 4]))
    assert found.mean == pytest.approx(math.exp(2))
    assert found.standard_error == pytest.approx(0, abs=1e-12)
    assert perplexity(np.array([6.0]), np.array([3])) == Estimate(pytest.approx(math.exp(2)), None)


def test_standard_errors_are_those_of_the_bootstrap():
    rng = np.random.default_rng(3)
    tokens = rng.integers(3, 15, 300)
    nats = 2.5 * tokens + rng.normal(0, 3, 300) + 4
    again = rng.integers(0, 300, (4000, 300))
    means = nats[again].mean(axis=1)
    perplexities = np.exp(nats[again].sum(axis=1) / tokens[again].sum(axis=1))
    assert mean_estimate(nats).standard_error == pytest.approx(means.std(), rel=0.05)
    assert perplexity(nats, tokens).standard_error == pytest.approx(perplexities.std(), rel=0.05)


@pytest.mark.parametrize(
    ("excess", "holds"),
    [
        (None, True),
        (Estimate(-2.0, 0.1), True),
        (Estimate(0.0, 0.0), True),
        (Estimate(0.29, 0.1), True),
        (Estimate(0.31, 0.1), False),
        (Estimate(0.01, 0.0), False),
        (Estimate(5.0, None), True),
    ],
)
def test_bound_is_broken_three_standard_errors_above_it(excess, holds):
    scores = replace(SCORES, nll_excess=excess)
    assert scores.bound_holds is holds
    assert scores.as_dict()["bound_holds"] is holds


def test_estimate_is_shown_with_its_error():
    assert str(Estimate(12.345, 0.678)) == "12.35 ± 0.68"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"sentences": 7}, "6 tokens in 7 sentences"),
        ({"re": Estimate(9.5, 0.1)}, "neg_elbo is 12.0, and re + kl is 12.5"),
        ({"kl_per_dimension": (1.0, 1.0)}, "kl is 3.0, and its dimensions add up to 2.0"),
        ({"active_units": 3}, "3 of 2 units are active"),
        ({"elbo_ppl": Estimate(50.0, 1.0)}, "elbo_ppl is 50.0, which contradicts the nats per sentence"),
        ({"nll": Estimate(11.0, 0.1)}, "importance_samples is 0, which contradicts nll or ppl"),
        ({"kl": Estimate(3.0, -0.1)}, "the standard error of kl is -0.1"),
    ],
)
def test_scores_that_contradict_each_other_are_named(change, message):
    assert replace(SCORES, **change).contradiction == message


def test_the_nll_of_a_language_model_is_its_re():
    exact = replace(
        SCORES, kl=Estimate(0.0, 0.0), neg_elbo=SCORES.re, elbo_ppl=Estimate(math.exp(3.0), 1.0), active_units=0,
        mutual_information=Estimate(0.0, 0.0), kl_per_dimension=(), nll=SCORES.re, ppl=Estimate(math.exp(3.0), 1.0),
    )  # fmt: skip
    assert exact.language_model
    assert not SCORES.language_model
    assert exact.contradiction is None
    for change in (
        {"nll": Estimate(9.5, 0.1), "ppl": Estimate(math.exp(9.5 / 3), 1.0)},
        {"nll": None, "ppl": None},
        {"importance_samples": 5, "effective_samples": 2.0},
    ):
        assert replace(exact, **change).contradiction == "there is no latent variable, and nll is not re"


def test_scores_are_finite_when_every_mean_is():
    assert SCORES.finite
    assert not replace(SCORES, ppl=Estimate(math.inf, None)).finite
    assert not replace(SCORES, nll_excess=Estimate(math.nan, None)).finite


def test_scores_of_a_split_follow_from_those_of_its_sentences():
    each = SentenceScores(
        tokens=np.array([2.0, 4.0]), re=np.array([8.0, 10.0]), kl=np.array([2.0, 4.0]),
        mutual_information=np.array([0.0, 1.0]),
    )  # fmt: skip
    others = {"active_units": 1, "kl_per_dimension": (1.0, 2.0), "seed": 3}
    found = Scores.of(each, **others, importance_samples=0, effective_samples=None, nll_excess=None)
    assert (found.sentences, found.tokens, found.seed) == (2, 6, 3)
    assert (found.re, found.kl, found.neg_elbo) == (Estimate(9.0, 1.0), Estimate(3.0, 1.0), Estimate(12.0, 2.0))
    assert found.elbo_ppl.mean == pytest.approx(math.exp(24 / 6))
    assert found.mutual_information == Estimate(0.5, 0.5)
    assert (found.nll, found.ppl, found.contradiction) == (None, None, None)
    weighted = replace(each, nll=np.array([7.0, 11.0]))
    found = Scores.of(weighted, **others, importance_samples=5, effective_samples=2.5, nll_excess=Estimate(-3.0, 0.0))
    assert found.nll == Estimate(9.0, 2.0)
    assert found.ppl.mean == pytest.approx(math.exp(18 / 6))
    assert (found.effective_samples, found.contradiction) == (2.5, None)
    assert (found.characters, found.bpc) == (None, None)
    counted = replace(weighted, characters=np.array([10.0, 26.0]))
    found = Scores.of(counted, **others, importance_samples=5, effective_samples=2.5, nll_excess=Estimate(-3.0, 0.0))
    assert (found.characters, found.contradiction) == (36, None)
    assert found.bpc.mean == pytest.approx(18 / 36 / math.log(2))
    assert "bpc is 9.0" in replace(found, bpc=Estimate(9.0, None)).contradiction


def test_bits_per_character_and_their_error():
    one = bits_per_character(np.array([math.log(2) * 30]), np.array([10]))
    assert one == Estimate(pytest.approx(3.0), None)
    same = bits_per_character(np.array([2.0, 6.0, 8.0]), np.array([1, 3, 4]))
    assert same.mean == pytest.approx(2 / math.log(2))
    assert same.standard_error == pytest.approx(0, abs=1e-12)
    # Of sentences of one length, it is that of the mean.
    nats = np.array([10.0, 14.0, 13.0, 9.0])
    found = bits_per_character(nats, np.full(4, 5))
    assert found.standard_error == pytest.approx(mean_estimate(nats).standard_error / 5 / math.log(2))
