import math
from collections import Counter
from itertools import product

import pytest
import torch
from torch import Tensor

from distvae.config.schema import ModelConfig
from distvae.data.vocabulary import Vocabulary
from distvae.evaluation.decoding import Decoding
from distvae.evaluation.generation import decode, interpolation, prior_draws
from distvae.model.draws import generator
from distvae.model.vae import TextVAE, initialise

VOCABULARY = Vocabulary.closed(["a", "b", "c", "d"])
PAD, BOS, EOS = VOCABULARY.pad, VOCABULARY.bos, VOCABULARY.eos
# What a sentence may hold, besides its end.
WORDS = tuple(range(VOCABULARY.unknown, len(VOCABULARY)))


def tiny_model(seed: int = 1) -> TextVAE:
    sizes = ModelConfig(embedding_size=4, hidden_size=6, latent_size=2, init_range=1.3, embedding_init_range=2.0)
    model = TextVAE(sizes, len(VOCABULARY), PAD, VOCABULARY.unknown).double().eval()
    initialise(model, sizes, generator("cpu", seed))
    return model


def leaning(model: TextVAE, scores: dict[int, float]) -> TextVAE:
    """The model with about these scores added to those of some tokens, at every step."""
    with torch.no_grad():
        # The first hidden unit becomes all but constant: its gates are open and it only adds up.
        for gate, bias in enumerate((20.0, -20.0, 20.0, 20.0)):
            row = gate * model.decoder.lstm.hidden_size
            model.decoder.lstm.weight_ih_l0[row] = model.decoder.lstm.weight_hh_l0[row] = 0
            model.decoder.lstm.bias_ih_l0[row] = bias
        for token, score in scores.items():
            model.decoder.output.weight[token, 0] = score / math.tanh(1)
    return model


@torch.no_grad()
def next_scores(model: TextVAE, z: Tensor, prefix: tuple[int, ...]) -> Tensor:
    """The logits after `<s>` and a prefix, read as a whole; -inf for what no sentence holds."""
    z = z[None]
    logits, _ = model.decoder(torch.tensor([[BOS, *prefix]]), z, model.decoder.initial_state(z))
    scores = logits[0, -1].clone()
    scores[[PAD, BOS]] = -torch.inf
    return scores


def log_probability(model: TextVAE, z: Tensor, ids: tuple[int, ...]) -> float:
    return sum(float(next_scores(model, z, ids[:t]).log_softmax(0)[token]) for t, token in enumerate(ids))


def ids_of(text: str) -> tuple[int, ...]:
    return tuple(VOCABULARY.tokens.index(word) for word in text.split())


def ended(text: str, max_tokens: int) -> tuple[int, ...]:
    """The ids that were decoded: there is an `</s>` unless the limit cut it off."""
    ids = ids_of(text)
    return ids if len(ids) == max_tokens else (*ids, EOS)


def greedy_by_hand(model: TextVAE, z: Tensor, max_tokens: int) -> tuple[int, ...]:
    ids = ()
    while len(ids) < max_tokens and EOS not in ids:
        ids = (*ids, int(next_scores(model, z, ids).argmax()))
    return ids


def latents(count: int) -> Tensor:
    return 2 * prior_draws(tiny_model(), count, seed=3).double()


def assert_drawn_from(counts: Counter, probabilities: dict) -> None:
    """Chi-square: the statistic's mean is the degrees of freedom, its variance twice that."""
    assert set(counts) <= {outcome for outcome, p in probabilities.items() if p > 0}
    assert math.fsum(probabilities.values()) == pytest.approx(1)
    total = counts.total()
    expected = {outcome: total * p for outcome, p in probabilities.items() if total * p >= 5}
    assert sum(expected.values()) > 0.97 * total
    chi_square = sum((counts[outcome] - mean) ** 2 / mean for outcome, mean in expected.items())
    freedom = len(expected) - 1
    assert chi_square <= freedom + 4 * math.sqrt(2 * freedom)


# -- Greedy ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_greedy_takes_the_likeliest_token_after_the_whole_prefix(seed):
    model, z = tiny_model(seed), latents(12)
    texts = decode(model, z, VOCABULARY, Decoding(max_tokens=7))
    assert [ended(text, 7) for text in texts] == [greedy_by_hand(model, row, 7) for row in z]
    assert len(set(texts)) > 1


def test_greedy_stops_at_the_end_of_each_sentence():
    z = latents(30)
    texts = decode(tiny_model(2), z, VOCABULARY, Decoding(max_tokens=12))
    lengths = {len(text.split()) for text in texts}
    assert len(lengths) > 1
    assert min(lengths) < 12
    assert texts == [decode(tiny_model(2), row[None], VOCABULARY, Decoding(max_tokens=12))[0] for row in z]


def test_greedy_ends_with_the_longest_sentence():
    model, steps = tiny_model(2), []
    by_hand = {row: greedy_by_hand(model, row, 20) for row in latents(20)}
    ending = [row for row, ids in by_hand.items() if EOS in ids]
    longest = max(len(by_hand[row]) for row in ending)
    assert longest > min(len(by_hand[row]) for row in ending)
    model.decoder.register_forward_pre_hook(lambda _, inputs: steps.append(inputs[0].shape))
    decode(model, torch.stack(ending), VOCABULARY, Decoding(max_tokens=50))
    assert steps == [(len(ending), 1)] * longest  # a token at a time


@pytest.mark.parametrize("options", [{}, {"method": "sample"}, {"method": "beam", "beam_size": 3}])
def test_sentences_without_an_end_are_cut_at_the_limit(options):
    model = leaning(tiny_model(), {EOS: -60})
    for limit in (1, 5):
        texts = decode(model, latents(6), VOCABULARY, Decoding(max_tokens=limit, **options))
        assert {len(text.split()) for text in texts} == {limit}


@pytest.mark.parametrize("options", [{}, {"method": "sample"}, {"method": "beam", "beam_size": 3}])
def test_an_end_that_is_certain_leaves_an_empty_sentence(options):
    model = leaning(tiny_model(), {EOS: 60})
    assert decode(model, latents(3), VOCABULARY, Decoding(**options)) == ["", "", ""]


@pytest.mark.parametrize(
    "options", [{}, {"method": "sample"}, {"method": "sample", "top_k": 2}, {"method": "beam", "beam_size": 4}]
)
def test_padding_and_beginning_are_never_decoded(options):
    # Were they, they would be all there is, and the texts would be empty.
    model = leaning(tiny_model(), {PAD: 60, BOS: 60, EOS: -30})
    texts = decode(model, latents(20), VOCABULARY, Decoding(max_tokens=4, **options))
    assert {len(ids_of(text)) for text in texts} == {4}


# -- Sampling ----------------------------------------------------------------------------------------------------------


def sampled(model: TextVAE, z: Tensor, count: int, max_tokens: int, **options) -> Counter:
    decoding = Decoding(method="sample", max_tokens=max_tokens, **options)
    texts = decode(model, z.expand(count, -1), VOCABULARY, decoding)
    return Counter(ended(text, max_tokens) for text in texts)


def first_probabilities(model: TextVAE, z: Tensor, temperature: float = 1.0) -> Tensor:
    return (next_scores(model, z, ()) / temperature).softmax(0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_sampled_tokens_have_the_probabilities_of_the_softmax(temperature):
    model, z = tiny_model(), latents(1)[0]
    expected = first_probabilities(model, z, temperature).tolist()
    counts = sampled(model, z, 3000, 1, temperature=temperature)
    assert_drawn_from(
        Counter({ids[0]: count for ids, count in counts.items()}), {i: p for i, p in enumerate(expected) if p > 0}
    )


def test_sampled_sentences_have_the_probabilities_of_the_model():
    model, z = tiny_model(), latents(1)[0]
    sentences = [(EOS,), *((word, last) for word in WORDS for last in (*WORDS, EOS))]
    expected = {ids: math.exp(log_probability(model, z, ids)) for ids in sentences}
    assert_drawn_from(sampled(model, z, 4000, 2), expected)


@pytest.mark.parametrize("top_k", [1, 3, 5, 100])
def test_top_k_samples_from_the_k_likeliest_in_proportion(top_k):
    model, z = tiny_model(), latents(1)[0]
    probabilities = first_probabilities(model, z)
    likeliest = probabilities.argsort(descending=True)[: min(top_k, len(WORDS) + 1)].tolist()
    counts = sampled(model, z, 3000, 1, top_k=top_k)
    assert {ids[0] for ids in counts} == set(likeliest)
    total = sum(probabilities[likeliest]).item()
    assert_drawn_from(
        Counter({ids[0]: count for ids, count in counts.items()}),
        {i: probabilities[i].item() / total for i in likeliest},
    )


def smallest_set_reaching(probabilities: dict[int, float], share: float) -> dict[int, float]:
    kept = {}
    for token, probability in sorted(probabilities.items(), key=lambda item: -item[1]):
        if sum(kept.values()) >= share:
            break
        kept[token] = probability
    total = sum(kept.values())
    return {token: probability / total for token, probability in kept.items()}


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.6, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("top_k", [None, 3])
def test_top_p_samples_from_the_smallest_set_that_reaches_p(top_p, top_k):
    model, z = tiny_model(), latents(1)[0]
    probabilities = dict(enumerate(first_probabilities(model, z).tolist()))
    del probabilities[PAD], probabilities[BOS]
    if top_k is not None:  # first: p is a share of what it leaves
        likeliest = sorted(probabilities, key=probabilities.get)[-top_k:]
        left = sum(probabilities[token] for token in likeliest)
        probabilities = {token: probabilities[token] / left for token in likeliest}
    expected = smallest_set_reaching(probabilities, top_p)
    counts = sampled(model, z, 2000, 1, top_p=top_p, top_k=top_k)
    assert {ids[0] for ids in counts} == set(expected)
    if len(expected) > 1:
        assert_drawn_from(Counter({ids[0]: count for ids, count in counts.items()}), expected)


def test_the_sets_of_top_p_differ():
    model, z = tiny_model(), latents(1)[0]
    probabilities = dict(enumerate(first_probabilities(model, z).tolist()))
    assert [len(smallest_set_reaching(probabilities, p)) for p in (0.01, 0.6, 0.95)] == [1, 2, 5]


@pytest.mark.parametrize(("top_p", "size"), [(0.125, 1), (0.5, 4), (0.51, 5), (1.0, 8)])
def test_a_set_that_reaches_p_exactly_is_large_enough(top_p, size):
    vocabulary = Vocabulary.closed("abcdef")  # with `</s>` and `<unk>`, eight that are all as likely
    model = TextVAE(ModelConfig(hidden_size=2, latent_size=2), len(vocabulary), PAD, vocabulary.unknown).double()
    torch.nn.init.zeros_(model.decoder.output.weight)
    z = torch.zeros(400, 2, dtype=torch.float64)
    texts = decode(model, z, vocabulary, Decoding(method="sample", top_p=top_p, max_tokens=1))
    assert len(set(texts)) == size


def test_top_k_of_one_and_a_low_temperature_are_greedy():
    model, z = tiny_model(), latents(10)
    greedy = decode(model, z, VOCABULARY, Decoding(max_tokens=6))
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        assert decode(model, z, VOCABULARY, Decoding(method="sample", max_tokens=6, **options)) == greedy


def test_samples_are_set_by_the_seed():
    model, z = tiny_model(), latents(20)
    first, again, other = (
        decode(model, z, VOCABULARY, Decoding(method="sample", max_tokens=8, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("options", [{}, {"method": "sample", "seed": 3}, {"method": "beam", "beam_size": 2}])
def test_sentences_are_the_same_however_many_are_decoded_at_a_time(monkeypatch, options):
    model, z, decoding, done = tiny_model(), latents(20), Decoding(max_tokens=8, **options), []
    together = decode(model, z, VOCABULARY, decoding)
    beams = decoding.beam_size if decoding.method == "beam" else 1
    monkeypatch.setattr("distvae.evaluation.generation.SCORED_TOGETHER", 7 * beams * len(VOCABULARY) + 1)
    assert decode(model, z, VOCABULARY, decoding, done.append) == together
    assert done == [7, 7, 6]


# -- Beam search -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_beam_of_all_prefixes_finds_the_likeliest_sentence(seed):
    model, z, limit = tiny_model(seed), latents(8), 3
    sentences = [(*ids, EOS) for n in range(limit) for ids in product(WORDS, repeat=n)]
    sentences += product(WORDS, repeat=limit)
    tokens = torch.tensor([(BOS, *ids) + (PAD,) * (limit - len(ids)) for ids in sentences])
    texts = decode(model, z, VOCABULARY, Decoding(method="beam", beam_size=len(sentences), max_tokens=limit))
    for row, text in zip(z, texts, strict=True):
        scores = score_all(model, row, tokens)
        best = max(range(len(sentences)), key=scores.__getitem__)
        assert ended(text, limit) == sentences[best]
        assert scores[best] == pytest.approx(log_probability(model, row, sentences[best]))


@torch.no_grad()
def score_all(model: TextVAE, z: Tensor, tokens: Tensor) -> list[float]:
    """log p of each row of ids after `<s>`, over what sentences may hold."""
    z = z.expand(len(tokens), -1)
    logits, _ = model.decoder(tokens[:, :-1], z, model.decoder.initial_state(z))
    logits[..., [PAD, BOS]] = -torch.inf
    targets = tokens[:, 1:]
    steps = logits.log_softmax(-1).gather(2, targets[..., None]).squeeze(2)
    return steps.masked_fill(targets == PAD, 0).sum(dim=1).tolist()


def beam_by_hand(model: TextVAE, z: Tensor, size: int, max_tokens: int) -> tuple[int, ...]:
    beams = [(0.0, ())]
    for _ in range(max_tokens):
        further = [beam for beam in beams if EOS in beam[1]]
        for score, ids in (beam for beam in beams if EOS not in beam[1]):
            steps = next_scores(model, z, ids).log_softmax(0)
            further += [(score + float(steps[token]), (*ids, token)) for token in (EOS, *WORDS)]
        beams = sorted(further, reverse=True)[:size]
    return beams[0][1]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_a_narrow_beam_keeps_the_likeliest_of_each_step(size):
    for seed in (1, 5):
        model, z = tiny_model(seed), latents(15)
        with torch.no_grad():
            model.decoder.output.weight *= 2  # so that beams overtake each other
        texts = decode(model, z, VOCABULARY, Decoding(method="beam", beam_size=size, max_tokens=5))
        assert [ended(text, 5) for text in texts] == [beam_by_hand(model, row, size, 5) for row in z]


def test_a_beam_of_one_is_greedy():
    for seed in range(3):
        model, z = tiny_model(seed), latents(8)
        greedy = decode(model, z, VOCABULARY, Decoding(max_tokens=9))
        assert decode(model, z, VOCABULARY, Decoding(method="beam", beam_size=1, max_tokens=9)) == greedy


def test_a_beam_finds_what_greedy_misses():
    models, z = [tiny_model(seed) for seed in range(3)], latents(8)
    gains = []
    for model in models:
        greedy, beam = (
            decode(model, z, VOCABULARY, Decoding(method=method, max_tokens=6)) for method in ("greedy", "beam")
        )
        for row, one, other in zip(z, greedy, beam, strict=True):
            gains.append(log_probability(model, row, ended(other, 6)) - log_probability(model, row, ended(one, 6)))
    assert min(gains) > -1e-6
    assert max(gains) > 0.1


def test_a_beam_decodes_each_sentence_as_if_alone():
    model, z, decoding = tiny_model(2), latents(10), Decoding(method="beam", beam_size=3, max_tokens=8)
    texts = decode(model, z, VOCABULARY, decoding)
    assert len({len(text.split()) for text in texts}) > 1
    assert texts == [decode(model, row[None], VOCABULARY, decoding)[0] for row in z]


# -- Points in latent space --------------------------------------------------------------------------------------------


def test_interpolation_goes_from_end_to_end_in_equal_steps():
    start, end = torch.tensor([0.1, -3.7, 1e-3]), torch.tensor([7.3, 0.2, 1e-3])
    points = interpolation(start, end, 11)
    assert points.shape == (11, 3)
    assert torch.equal(points[0], start)
    assert torch.equal(points[-1], end)
    torch.testing.assert_close(points.diff(dim=0), ((end - start) / 10).expand(10, -1), rtol=0, atol=1e-6)
    assert torch.equal(interpolation(start, end, 2), torch.stack([start, end]))


def test_a_larger_count_begins_with_the_prior_draws_of_a_smaller_one():
    model = tiny_model()
    assert prior_draws(model, 9, 5).shape == (9, 2)
    assert torch.equal(prior_draws(model, 9, 5)[:4], prior_draws(model, 4, 5))
    assert not (prior_draws(model, 4, 5) == prior_draws(model, 4, 6)).any()


def test_prior_draws_are_standard_normal_and_independent():
    z = prior_draws(tiny_model(), 2500, 1).double()
    assert z.mean(dim=0).abs().max() < 4 / 50
    assert (z.T.cov() - torch.eye(2)).abs().max() < 4 * math.sqrt(2 / 2500)
