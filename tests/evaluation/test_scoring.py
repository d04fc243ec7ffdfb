import copy
import itertools
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, Normal

from distvae.config.schema import EvaluationConfig, ModelConfig
from distvae.data import captions
from distvae.data.sentences import Sentences
from distvae.data.vocabulary import Vocabulary
from distvae.distributed.device import has_bf16
from distvae.evaluation import scoring
from distvae.evaluation.scores import Estimate, Scores, mean_estimate
from distvae.evaluation.scoring import (
    floor,
    importance_log_weights,
    importance_weighted_nll,
    mutual_information,
    score,
)
from distvae.model.draws import generator
from distvae.model.posterior import Posterior
from distvae.model.vae import TextVAE, initialise
from tests.conftest import PATIENCE
from tests.model.tiny import reconstruction_by_hand

PAD, BOS, EOS, UNKNOWN, A, B, C = range(7)
WORDS = [[A, C], [], [B, B, UNKNOWN, A], [C], [A, A, A, A, A, A], [B, C, B], [C, A]]
SETTINGS = EvaluationConfig(batch_size=3, importance_samples=20, memory_mb=64, seed=1)


class Rank:
    """One of several ranks, each a thread of this process."""

    device = torch.device("cpu")

    def __init__(self, rank: int, world_size: int, slots: list, barrier: threading.Barrier):
        self.rank, self.world_size, self._slots, self._barrier = rank, world_size, slots, barrier

    def sum(self, values: Tensor) -> Tensor:
        self._slots[self.rank] = values.clone()
        self._barrier.wait(PATIENCE)
        total = torch.stack(self._slots).sum(dim=0)
        self._barrier.wait(PATIENCE)
        return values.copy_(total)


ALONE = Rank(0, 1, [None], threading.Barrier(1))


def on_ranks(world_size: int, work: Callable[[Rank], object]) -> list:
    """What ``work`` returns on each of so many ranks."""
    slots, barrier = [None] * world_size, threading.Barrier(world_size)
    outcomes = [None] * world_size

    def run(rank: int) -> None:
        try:
            outcomes[rank] = work(Rank(rank, world_size, slots, barrier))
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def evaluate(*arguments, **options) -> Scores:
    return score(*arguments, **options)[0]


def sentences_of(words: Sequence[Sequence[int]]) -> Sentences:
    rows = [[BOS, *ids, EOS] for ids in words]
    return Sentences.of(rows)


def tiny_model(
    latent_size: int = 2, vocabulary_size: int = 7, hidden_size: int = 4, fused_output: bool = True
) -> TextVAE:
    """A float64 model whose z matters, and whose posterior is not the true one."""
    sizes = ModelConfig(
        embedding_size=3, hidden_size=hidden_size, latent_size=latent_size, init_range=1.2, embedding_init_range=1.5
    )
    model = TextVAE(sizes, vocabulary_size, PAD, UNKNOWN, fused_output).double()
    initialise(model, sizes, generator("cpu", 4))
    return model.eval()


def blinded(model: TextVAE) -> TextVAE:
    """Its decoder does not look at z, and its posterior is the prior, which is therefore the true one."""
    with torch.no_grad():
        model.encoder.posterior.weight.zero_()
        model.encoder.posterior.bias.zero_()
        model.decoder.latent_to_cell.weight.zero_()
        model.decoder.lstm.weight_ih_l0[:, model.decoder.embedding.embedding_dim :].zero_()
    return model


def assert_same(found: Scores, expected: Scores) -> None:
    found, expected = found.as_dict(), expected.as_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):  # an Estimate, whose error is None for a single sentence
            value = {
                key: item if item is None else pytest.approx(item, rel=1e-12, abs=1e-12) for key, item in value.items()
            }
        elif value is not None:
            value = pytest.approx(value, rel=1e-12, abs=1e-12)
        assert found[name] == value, name


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator("cpu", 8, *shape), dtype=torch.float64)


# -- Importance weights ------------------------------------------------------------------------------------------------


def encoded(model: TextVAE, sentence: Sequence[int]) -> tuple[Tensor, Posterior]:
    tokens = torch.tensor([[BOS, *sentence, EOS]])
    return tokens, model.encoder(tokens, torch.tensor([tokens.shape[1]]))


@torch.no_grad()
def nll_by_quadrature(model: TextVAE, tokens: Tensor, latent_size: int) -> float:
    """−log ∫ p(x|z) p(z) dz by the trapezoid rule, which for such functions is all but exact."""
    axis = torch.linspace(-9, 9, 3001 if latent_size == 1 else 121, dtype=torch.float64)
    grid = torch.cartesian_prod(*[axis] * latent_size).view(-1, latent_size)
    log_p = -model.decoder.reconstruction(tokens.expand(len(grid), -1), grid)
    log_p += Normal(0.0, 1.0).log_prob(grid).sum(dim=1)
    return -float(torch.logsumexp(log_p, dim=0)) - latent_size * math.log(float(axis[1] - axis[0]))


@pytest.mark.parametrize("latent_size", [1, 2])
@pytest.mark.parametrize("sentence", [[], [A, C], [B, B, UNKNOWN, A]])
@torch.no_grad()
def test_importance_weighted_nll_is_the_integral(latent_size, sentence):
    model, samples = tiny_model(latent_size), 20_000
    tokens, posterior = encoded(model, sentence)
    weights = importance_log_weights(model.decoder, tokens, posterior, normal(1, samples, latent_size), 64)
    nll, effective = importance_weighted_nll(weights)
    assert samples / 50 < effective.item() < 0.999 * samples
    error = math.sqrt(1 / effective.item() - 1 / samples)
    exact = nll_by_quadrature(model, tokens, latent_size)
    assert abs(nll.item() - exact) < 3.5 * error
    assert 3.5 * error < 0.1
    # What the integral tells apart from a bound on it: the evidence lower bound is far off.
    kl = torch.distributions.kl_divergence(
        Normal(posterior.mean, torch.exp(posterior.log_variance / 2)), Normal(0.0, 1.0)
    )
    z = posterior.sample(normal(samples, latent_size))
    neg_elbo = model.decoder.reconstruction(tokens.expand(samples, -1), z).mean() + kl.sum()
    assert neg_elbo.item() > exact + 5 * error


def test_scores_nll_is_the_mean_of_the_integrals():
    model, sentences = tiny_model(1), sentences_of(WORDS)
    scores = evaluate(model, sentences, SETTINGS, ALONE, importance_samples=4000)
    exact = [nll_by_quadrature(model, torch.tensor(ids.tolist())[None], 1) for ids in sentences]
    error = math.sqrt(1 / scores.effective_samples / len(exact))
    assert scores.nll.mean == pytest.approx(np.mean(exact), abs=4 * error)
    assert scores.ppl.mean == pytest.approx(math.exp(sum(exact) / scores.tokens), rel=4 * error)
    assert 4 * error < 0.1
    assert scores.bound_holds


@torch.no_grad()
def test_log_weights_are_the_densities():
    model = tiny_model()
    tokens = torch.tensor([[BOS, A, C, EOS], [BOS, B, EOS, PAD]])
    posterior = model.encoder(tokens, torch.tensor([4, 3]))
    noise = normal(2, 5, 2)
    found = importance_log_weights(model.decoder, tokens, posterior, noise, 64)
    assert found.shape == (2, 5)
    for b in range(2):
        q = Normal(posterior.mean[b], torch.exp(posterior.log_variance[b] / 2))
        for k in range(5):
            z = q.mean + q.stddev * noise[b, k]
            expected = Normal(0.0, 1.0).log_prob(z).sum() - q.log_prob(z).sum()
            expected -= model.decoder.reconstruction(tokens[b : b + 1], z[None])[0]
            assert found[b, k].item() == pytest.approx(expected.item(), abs=1e-12)


@torch.no_grad()
def test_log_weights_of_a_batch_are_those_of_its_sentences_one_by_one():
    model = tiny_model()
    rows = [[BOS, *words, EOS] for words in WORDS]
    tokens = torch.tensor([row + [PAD] * (8 - len(row)) for row in rows])
    posterior = model.encoder(tokens, torch.tensor([len(row) for row in rows]))
    noise = normal(len(rows), 6, 2)
    together = importance_log_weights(model.decoder, tokens, posterior, noise, 64)
    for i, row in enumerate(rows):
        own, alone = encoded(model, row[1:-1])
        weights = importance_log_weights(model.decoder, own, alone, noise[i : i + 1], 64)
        torch.testing.assert_close(weights[0], together[i], rtol=0, atol=1e-12)


@pytest.mark.parametrize("fused", [True, False])
@torch.no_grad()
def test_memory_bounds_the_chunks_and_changes_no_weight(fused):
    model = tiny_model(vocabulary_size=600, hidden_size=40, fused_output=fused)
    tokens, posterior = encoded(model, [A, C, A])
    noise = normal(1, 500, 2)
    rows = []
    model.decoder.output.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    # In float32, of four steps: an LSTM's gates, cells and hidden states, and the logits where they are kept.
    values = 6 * 40 + (0 if fused else 600)
    weights = {}
    for memory_mb in (0, 1, 512):
        rows.clear()
        weights[memory_mb] = importance_log_weights(model.decoder, tokens, posterior, noise, memory_mb)
        assert sum(rows) == 500
        assert max(rows) == 1 or max(rows) * 4 * values * 4 <= memory_mb * 2**20
        if memory_mb == 1:
            assert 1 < max(rows) < 500
    assert len(rows) == 1
    torch.testing.assert_close(weights[0], weights[512], rtol=0, atol=1e-12)
    torch.testing.assert_close(weights[1], weights[512], rtol=0, atol=1e-12)


def test_nll_and_effective_samples_of_known_weights():
    weights = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0], [3.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    nll, effective = importance_weighted_nll(weights.log() - 1000)
    assert nll.tolist() == pytest.approx([1000, 1000 + math.log(4), 1000])
    assert effective.tolist() == pytest.approx([4, 1, 16 / 10])


def test_a_posterior_that_is_the_true_one_leaves_the_weights_no_variance():
    model = blinded(tiny_model())
    scores = evaluate(model, sentences_of(WORDS), SETTINGS, ALONE, importance_samples=20)
    tokens = torch.tensor([[BOS, *words, EOS] + [PAD] * (6 - len(words)) for words in WORDS])
    re = model.decoder.reconstruction(tokens, torch.zeros(len(WORDS), 2, dtype=torch.float64)).mean().item()
    for estimate in (scores.re, scores.nll, scores.neg_elbo):
        assert estimate.mean == pytest.approx(re, abs=1e-12)
    assert scores.kl == Estimate(0, 0)
    assert scores.kl_per_dimension == (0, 0)
    assert scores.nll_excess.mean == pytest.approx(0, abs=1e-12)
    assert scores.effective_samples == pytest.approx(20, abs=1e-9)
    assert scores.mutual_information.mean == pytest.approx(0, abs=1e-12)
    assert scores.active_units == 0


# -- The decoder's precision in importance sampling --------------------------------------------------------------------


def scored_in(precision: str | None, fused: bool = True, blind: bool = False) -> Scores:
    """Of a float32 model of a hundred sentences."""
    sizes = ModelConfig(embedding_size=16, hidden_size=32, latent_size=4, init_range=0.3, embedding_init_range=1.0)
    model = TextVAE(sizes, 200, PAD, UNKNOWN, fused)
    initialise(model, sizes, generator("cpu", 4))
    if blind:
        blinded(model)
    rng = np.random.default_rng(0)
    sentences = sentences_of([rng.integers(A, 200, length).tolist() for length in rng.integers(1, 12, 100)])
    return evaluate(model.eval(), sentences, replace(SETTINGS, batch_size=32, mixed_precision=precision), ALONE, 20)


@pytest.mark.skipif(not has_bf16(ALONE.device), reason="this CPU has no bfloat16 instructions")
@pytest.mark.parametrize("fused", [True, False])
def test_bf16_biases_the_weighted_nll_by_less_than_a_hundredth_of_a_nat(fused):
    exact, found = scored_in("no", fused), scored_in("bf16", fused)
    assert 0 < abs(found.nll.mean - exact.nll.mean) < 0.01
    assert exact.nll.mean > 30
    weighted = ("nll", "ppl", "effective_samples", "nll_excess")
    assert replace(found, **{name: getattr(exact, name) for name in weighted}) == exact


@pytest.mark.skipif(not has_bf16(ALONE.device), reason="this CPU has no bfloat16 instructions")
@pytest.mark.parametrize("fused", [True, False])
def test_rounding_to_bf16_puts_no_nll_above_the_neg_elbo(fused):
    """Where z tells nothing, both are the same but for rounding, and their difference has hardly any error."""
    scores = scored_in("bf16", fused, blind=True)
    assert abs(scores.nll.mean - scores.neg_elbo.mean) > 1e-5
    assert scores.nll_excess.mean == pytest.approx(0, abs=1e-5)


def test_a_cpu_without_bf16_scores_in_float32(monkeypatch):
    monkeypatch.setattr(scoring, "has_bf16", lambda device: False)
    assert scored_in("bf16") == scored_in("no") == scored_in(None)


# -- A language model --------------------------------------------------------------------------------------------------


def nll_by_hand(model: TextVAE, ids: Sequence[int]) -> float:
    """−log p of these ids after `<s>`, one softmax after the other."""
    return reconstruction_by_hand(model, [BOS, *ids[:-1]], list(ids), torch.zeros(0, dtype=torch.float64)).item()


def test_the_nll_of_a_language_model_is_that_of_all_sentences_enumerated():
    model = tiny_model(latent_size=0, vocabulary_size=5)
    words, longest = (BOS, UNKNOWN, A), 3
    sentences = [ids for length in range(longest + 1) for ids in itertools.product(words, repeat=length)]
    scores, each = score(model, sentences_of(sentences), SETTINGS, ALONE, importance_samples=20)
    assert each.nll == pytest.approx([nll_by_hand(model, [*ids, EOS]) for ids in sentences], abs=1e-12)
    # A text ends within so many words, goes astray to a padding, which no sentence holds, or is longer.
    stray = sum(math.exp(-nll_by_hand(model, [*ids, PAD])) for ids in sentences)
    longer = sum(math.exp(-nll_by_hand(model, ids)) for ids in itertools.product(words, repeat=longest + 1))
    ended = np.exp(-each.nll).sum()
    assert 0.2 < ended < 0.9
    assert ended + stray + longer == pytest.approx(1, abs=1e-12)
    tokens = sum(len(ids) + 1 for ids in sentences)
    assert scores.ppl.mean == pytest.approx(math.exp(each.nll.sum() / tokens), rel=1e-12)


def test_the_nll_of_a_language_model_is_its_re_and_its_latent_is_nothing():
    scores, each = score(tiny_model(latent_size=0), sentences_of(WORDS), SETTINGS, ALONE, importance_samples=20)
    assert scores.language_model
    assert scores.re == scores.neg_elbo == scores.nll
    assert scores.re.standard_error > 0.1
    assert scores.ppl == scores.elbo_ppl
    assert scores.kl == scores.mutual_information == Estimate(0, 0)
    assert (scores.active_units, scores.kl_per_dimension) == (0, ())
    assert (scores.importance_samples, scores.effective_samples, scores.nll_excess) == (0, None, None)
    assert scores.contradiction is None
    assert not each.mutual_information.any()


@pytest.mark.parametrize("importance_samples", [0, 2**12])
def test_a_language_model_decodes_each_sentence_once(importance_samples):
    model, rows = tiny_model(latent_size=0), []
    model.decoder.output.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    done = []
    settings = replace(SETTINGS, mixed_precision="bf16", seed=importance_samples)
    found = evaluate(model, sentences_of(WORDS), settings, ALONE, importance_samples, done.append)
    assert rows == done == [3, 3, 1]
    assert replace(found, seed=1) == evaluate(model, sentences_of(WORDS), SETTINGS, ALONE)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_score_a_language_model_alike(world_size):
    model, sentences = tiny_model(latent_size=0), sentences_of(WORDS)
    alone = evaluate(model, sentences, SETTINGS, ALONE)
    every = on_ranks(world_size, lambda rank: evaluate(copy.deepcopy(model), sentences, SETTINGS, rank))
    assert all(scores == every[0] for scores in every)
    assert_same(every[0], alone)


# -- Each sentence once, whatever the ranks, batches and chunks --------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5, 7])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_score_each_sentence_once_and_agree_with_one_alone(count, world_size, monkeypatch):
    model, sentences, scored = tiny_model(), sentences_of(WORDS[:count]), []
    score_batch = scoring._score_batch

    def spy(model, batch, numbers, *rest):
        scored.extend(numbers.tolist())
        return score_batch(model, batch, numbers, *rest)

    monkeypatch.setattr(scoring, "_score_batch", spy)
    alone = evaluate(model, sentences, SETTINGS, ALONE, 20)
    assert sorted(scored) == list(range(count))
    scored.clear()
    every = on_ranks(world_size, lambda rank: evaluate(copy.deepcopy(model), sentences, SETTINGS, rank, 20))
    assert sorted(scored) == list(range(count))
    assert all(scores == every[0] for scores in every)
    assert_same(every[0], alone)
    assert alone.sentences == count
    assert alone.tokens == sum(len(words) + 1 for words in WORDS[:count])


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_scores_do_not_depend_on_the_batch_size(batch_size):
    model, sentences = tiny_model(), sentences_of(WORDS)
    found = evaluate(model, sentences, replace(SETTINGS, batch_size=batch_size), ALONE, 20)
    assert_same(found, evaluate(model, sentences, SETTINGS, ALONE, 20))


def test_scores_do_not_depend_on_the_order_of_batches(monkeypatch):
    model, sentences = tiny_model(), sentences_of(WORDS)
    expected = evaluate(model, sentences, SETTINGS, ALONE, 20)
    plan = [np.array([6, 0, 2]), np.array([5]), np.array([1, 4, 3])]
    monkeypatch.setattr(scoring, "evaluation_plan", lambda lengths, batch_size: plan)
    assert_same(evaluate(model, sentences, SETTINGS, ALONE, 20), expected)


@pytest.mark.parametrize("fused", [True, False])
def test_scores_do_not_depend_on_the_memory(fused):
    model = tiny_model(vocabulary_size=900, hidden_size=200, fused_output=fused)
    sentences, rows = sentences_of(WORDS), []
    model.decoder.output.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    expected = evaluate(model, sentences, SETTINGS, ALONE, 20)
    assert max(rows) == 3 * 20
    rows.clear()
    assert_same(evaluate(model, sentences, replace(SETTINGS, memory_mb=1), ALONE, 20), expected)
    assert max(rows) < 60


def test_a_plan_that_repeats_or_forgets_a_sentence_is_an_error(monkeypatch):
    model, sentences = tiny_model(), sentences_of(WORDS[:3])
    monkeypatch.setattr(scoring, "evaluation_plan", lambda lengths, batch_size: [np.array([0, 2])])
    with pytest.raises(AssertionError, match="twice or not at all"):
        evaluate(model, sentences, SETTINGS, ALONE)


def test_draws_are_set_by_the_seed_and_the_sentences_number():
    model, sentences = tiny_model(), sentences_of([[A, C], [B]] * 20)
    first = evaluate(model, sentences, SETTINGS, ALONE, 20)
    assert evaluate(model, sentences, SETTINGS, ALONE, 20) == first
    other = evaluate(model, sentences, replace(SETTINGS, seed=2), ALONE, 20)
    assert other.re.mean != first.re.mean
    assert other.nll.mean != first.nll.mean
    assert (other.kl, other.active_units, other.seed) == (first.kl, first.active_units, 2)
    same = evaluate(model, sentences_of([[A, C]] * 40), SETTINGS, ALONE)
    assert same.kl.standard_error == pytest.approx(0, abs=1e-12)
    assert same.re.standard_error > 0.001


def test_progress_counts_every_sentence():
    done = []
    evaluate(tiny_model(), sentences_of(WORDS), SETTINGS, ALONE, on_progress=done.append)
    assert done == [3, 3, 1]
    on_ranks(2, lambda rank: evaluate(tiny_model(), sentences_of(WORDS), SETTINGS, rank, on_progress=done.append))
    assert sorted(done[3:]) == [1, 1, 6, 6]  # batch_size sentences on each rank


@pytest.mark.parametrize(("importance_samples", "batches"), [(20, [3, 3, 1]), (2**12, [2, 2, 2, 1]), (2**14, [1] * 7)])
def test_more_importance_samples_are_of_fewer_sentences_at_once(importance_samples, batches):
    done = []
    evaluate(tiny_model(), sentences_of(WORDS), SETTINGS, ALONE, importance_samples, done.append)
    assert done == batches


def test_progress_is_told_as_often_on_every_rank_while_mutual_information_is_found(monkeypatch):
    plain = evaluate(tiny_model(), sentences_of(WORDS), SETTINGS, ALONE)
    monkeypatch.setattr(scoring, "_MIXTURE_VALUES", 2 * len(WORDS))  # two sentences at once
    calls = [[], [], []]
    found = on_ranks(
        3, lambda rank: evaluate(tiny_model(), sentences_of(WORDS), SETTINGS, rank, on_progress=calls[rank.rank].append)
    )
    # 3, 2 and 2 sentences: in two chunks, of which the last is empty on two ranks.
    assert calls == [[7, 0]] * 3
    for scores in found:
        assert scores.mutual_information.mean == pytest.approx(plain.mutual_information.mean, abs=1e-12)


def test_perplexities_are_of_sums():
    scores = evaluate(tiny_model(), sentences_of(WORDS), SETTINGS, ALONE, 20)
    n, tokens = scores.sentences, scores.tokens
    assert scores.ppl.mean == pytest.approx(math.exp(n * scores.nll.mean / tokens), rel=1e-12)
    assert scores.elbo_ppl.mean == pytest.approx(math.exp(n * scores.neg_elbo.mean / tokens), rel=1e-12)
    assert scores.nll_excess.mean == pytest.approx(scores.nll.mean - scores.neg_elbo.mean, abs=1e-12)


def test_without_importance_samples_there_is_no_nll():
    scores = evaluate(tiny_model(), sentences_of(WORDS), SETTINGS, ALONE)
    assert (scores.nll, scores.ppl, scores.effective_samples, scores.nll_excess) == (None, None, None, None)
    assert scores.importance_samples == 0
    assert scores.bound_holds
    weighted = evaluate(tiny_model(), sentences_of(WORDS), SETTINGS, ALONE, 20)
    assert_same(
        replace(weighted, importance_samples=0, nll=None, ppl=None, effective_samples=None, nll_excess=None), scores
    )


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_the_models_mode_and_gradients(training):
    model = tiny_model().train(training)

    def fail(done: int) -> None:
        assert not model.training
        raise KeyboardInterrupt

    evaluate(model, sentences_of(WORDS), SETTINGS, ALONE, 2)
    assert model.training is training
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, sentences_of(WORDS), SETTINGS, ALONE, on_progress=fail)
    assert model.training is training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_kl_is_the_closed_form():
    model = tiny_model()
    kl = torch.stack(
        [
            torch.distributions.kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0))[0]
            for mean, log_variance in (encoded(model, words)[1] for words in WORDS)
        ]
    )
    scores = evaluate(model, sentences_of(WORDS), SETTINGS, ALONE)
    assert scores.kl_per_dimension == pytest.approx(kl.mean(dim=0).tolist(), abs=1e-13)
    expected = Estimate(kl.sum(dim=1).mean().item(), (kl.sum(dim=1).std() / math.sqrt(len(WORDS))).item())
    assert scores.kl.mean == pytest.approx(expected.mean, abs=1e-13)
    assert scores.kl.standard_error == pytest.approx(expected.standard_error, abs=1e-13)
    assert scores.neg_elbo.mean == pytest.approx(scores.re.mean + scores.kl.mean, abs=1e-12)


# -- Active units and mutual information -------------------------------------------------------------------------------


def information(mean: Tensor, variance: Tensor | float, z: Tensor, runtime: Rank = ALONE) -> np.ndarray:
    variance = torch.as_tensor(variance, dtype=torch.float64).expand_as(mean)
    return mutual_information(Posterior(mean.double(), variance.log()), z.double(), runtime)


def test_equal_posteriors_hold_no_information():
    found = information(torch.full((50, 3), 1.5), 0.3, normal(50, 3))
    assert np.abs(found).max() < 1e-12


@pytest.mark.parametrize("count", [1, 2, 100])
def test_far_posteriors_hold_all_the_information_there_is(count):
    mean = torch.arange(count, dtype=torch.float64)[:, None] * torch.tensor([100.0, -50.0])
    found = information(mean, 0.5, mean + math.sqrt(0.5) * normal(count, 2))
    assert found == pytest.approx(math.log(count), abs=1e-9)


def test_two_clusters_hold_ln_2():
    mean = torch.tensor([100.0, -100.0]).repeat(30)[:, None]
    assert information(mean, 2.0, mean + normal(60, 1)) == pytest.approx(math.log(2), abs=1e-9)


def test_unequal_clusters_hold_their_entropy():
    mean = torch.tensor([[100.0]] * 10 + [[-100.0]] * 30)
    found = information(mean, 2.0, mean + normal(40, 1)).mean()
    assert found == pytest.approx(0.25 * math.log(4) + 0.75 * math.log(4 / 3), abs=1e-9)


def test_mutual_information_is_mean_kl_less_kl_of_the_mixture():
    count, deviation = 6000, 0.6
    mean = torch.tensor([0.8, -0.8], dtype=torch.float64).repeat(count // 2)[:, None]
    found = mean_estimate(information(mean, deviation**2, mean + deviation * normal(count, 1)))
    axis = torch.linspace(-8, 8, 20_001, dtype=torch.float64)
    q, prior = Normal(torch.tensor([0.8, -0.8], dtype=torch.float64), deviation), Normal(0.0, 1.0)
    mixture = torch.logsumexp(q.log_prob(axis[:, None]), dim=1) - math.log(2)
    kl_of_mixture = torch.trapezoid(mixture.exp() * (mixture - prior.log_prob(axis)), axis)
    exact = float(torch.distributions.kl_divergence(q, prior).mean() - kl_of_mixture)
    assert 0.3 < exact < 0.6
    assert found.mean == pytest.approx(exact, abs=3.5 * found.standard_error)
    assert found.standard_error < 0.01


def test_mutual_information_is_the_densities():
    count = 9
    mean, variance, noise = normal(count, 3), torch.exp(normal(count, 3) / 2), normal(3, count).T
    z = mean + variance.sqrt() * noise
    components = torch.distributions.Independent(Normal(mean, variance.sqrt()), 1)
    mixture = MixtureSameFamily(Categorical(torch.ones(count, dtype=torch.float64)), components)
    expected = components.log_prob(z) - mixture.log_prob(z)
    assert information(mean, variance, z) == pytest.approx(expected.numpy(), abs=1e-12)


def test_mutual_information_of_many_is_that_of_some(monkeypatch):
    """Its mean is the exact one but for chance, its values are those of a mixture with the own posterior, and no
    number of ranks changes them."""
    count, some = 2000, 500
    mean = 1.5 * normal(count, 2)
    z = mean + math.sqrt(0.5) * normal(2, count).T
    exact = information(mean, 0.5, z)
    monkeypatch.setattr(scoring, "MIXTURE", some)
    found = information(mean, 0.5, z)
    for ranks in (1, 3):
        assert all(
            other == pytest.approx(found, abs=1e-9)
            for other in on_ranks(ranks, lambda rank: information(mean, 0.5, z, rank))
        )
    chosen = np.linspace(0, count - 1, some).round().astype(int)
    densities = Normal(mean, math.sqrt(0.5)).log_prob(z[:, None]).sum(dim=2).numpy()  # of z_i under each posterior
    for i in (0, 1, 777, int(chosen[100])):
        others = [densities[i, j] for j in chosen if j != i]
        mixture = np.exp(densities[i, i]) / count + (count - 1) / count * np.exp(others).mean()
        assert found[i] == pytest.approx(densities[i, i] - math.log(mixture), abs=1e-9)
    assert found.mean() == pytest.approx(exact.mean(), abs=0.02)
    assert found.mean() != exact.mean()
    assert found.max() <= math.log(count)
    monkeypatch.setattr(scoring, "MIXTURE", count)
    assert information(mean, 0.5, z) == pytest.approx(exact, abs=0)


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_mutual_information_does_not_depend_on_its_chunks(rows, monkeypatch):
    mean, z = 2 * normal(20, 3), normal(3, 20).T
    expected = information(mean, 0.4, z)
    monkeypatch.setattr(scoring, "_MIXTURE_VALUES", rows * len(z))
    assert information(mean, 0.4, z) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("count", [1, 2, 20])
def test_ranks_agree_on_the_mutual_information(count):
    mean, z = 2 * normal(count, 3), normal(3, count).T
    for found in on_ranks(3, lambda rank: information(mean, 0.4, z, rank)):
        assert found == pytest.approx(information(mean, 0.4, z), abs=1e-12)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.floats(0, 100), st.floats(-12, 3), st.integers(0, 1000))
def test_mutual_information_is_never_above_ln_n(count, latent_size, spread, log_variance, seed):
    rng = np.random.default_rng(seed)
    mean = torch.from_numpy(spread * rng.standard_normal((count, latent_size)))
    variance = torch.full((count, latent_size), math.exp(log_variance), dtype=torch.float64)
    z = mean + variance.sqrt() * torch.from_numpy(rng.standard_normal((count, latent_size)))
    assert (information(mean, variance, z) <= math.log(count) + 1e-15).all()


# -- Standard errors ---------------------------------------------------------------------------------------------------


# -- The floor ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 3])
def test_floor_is_the_captions_own_probability(world_size):
    words = captions.generate(40, 2)
    vocabulary = Vocabulary.closed(captions.words())
    nll = np.array([-captions.log_probability(sentence) for sentence in words])
    sentences = sentences_of([vocabulary.encode(sentence)[1:-1] for sentence in words])
    found, *others = on_ranks(world_size, lambda rank: floor(sentences, vocabulary, rank))
    assert others == [found] * (world_size - 1)
    assert found.nll == mean_estimate(nll)
    assert found.ppl.mean == pytest.approx(math.exp(nll.sum() / sum(len(sentence) + 1 for sentence in words)))
    assert np.isfinite([found.ppl.standard_error, found.nll.standard_error]).all()
