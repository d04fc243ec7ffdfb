"""The n-gram model is a distribution, and the one of its definition."""

from __future__ import annotations

import math
import random
from itertools import product

import pytest

from distvae.evaluation.ngrams import DISCOUNT, NGrams

BOS, EOS, A, B, C = range(5)
# </s>, A, B and C may follow; the model counts <s> among V, as a vocabulary does.
V = 5


def sentences(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[BOS, *rng.choices([A, B, C], [5, 2, 1], k=rng.randint(0, 6)), EOS] for _ in range(count)]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_of_every_context_sum_to_one(order):
    model = NGrams(sentences(30), V, order)
    for length in range(order):
        for context in product(range(V), repeat=length):
            total = math.fsum(model.probability(token, context) for token in range(V))
            assert total == pytest.approx(1, abs=1e-12)
            assert min(model.probability(token, context) for token in range(V)) > 0


def test_the_sentences_of_a_length_have_the_probability_of_their_tokens():
    model = NGrams(sentences(30), V, 3)
    # Whatever does not end after one token goes on with any of V.
    ends = [math.exp(-model.nats([BOS, EOS])), *(math.exp(-model.nats([BOS, word, EOS])) for word in range(V))]
    going_on = math.fsum(
        math.exp(-model.nats([BOS, one, two, three]))
        for one, two, three in product(range(V), range(V), range(V))
        if one != EOS and two != EOS
    )
    ended = ends[0] + math.fsum(ends[1 + word] for word in range(V) if word != EOS)
    assert ended + going_on == pytest.approx(1, abs=1e-12)


def test_a_bigram_model_by_hand():
    # Bigrams: <s> A 2, A B 1, A </s> 1, B </s> 1. Kinds before: A 1 (only <s>), B 1, </s> 2.
    model = NGrams([[BOS, A, B, EOS], [BOS, A, EOS]], V, 2)
    unigram = {token: (max(kinds - DISCOUNT, 0) + DISCOUNT * 3 / V) / 4 for token, kinds in ((A, 1), (B, 1), (EOS, 2))}
    unigram[C] = DISCOUNT * 3 / V / 4
    assert model.probability(A, ()) == pytest.approx(unigram[A])
    assert model.probability(C, ()) == pytest.approx(unigram[C])
    assert model.probability(A, (BOS,)) == pytest.approx((2 - DISCOUNT + DISCOUNT * unigram[A]) / 2)
    assert model.probability(B, (A,)) == pytest.approx((1 - DISCOUNT + DISCOUNT * 2 * unigram[B]) / 2)
    assert model.probability(C, (A,)) == pytest.approx(DISCOUNT * 2 * unigram[C] / 2)
    assert model.probability(B, (C,)) == model.probability(B, ())  # C has not been seen
    expected = -math.log(model.probability(A, (BOS,))) - math.log(model.probability(EOS, (A,)))
    assert model.nats([BOS, A, EOS]) == pytest.approx(expected)


def test_longer_contexts_are_used_where_they_tell_more():
    # After A A comes B, after B A comes C: a bigram model cannot know.
    texts = [[BOS, A, A, B, EOS], [BOS, B, A, C, EOS]] * 20
    assert NGrams(texts, V, 3).probability(B, (A, A)) > 0.9
    assert NGrams(texts, V, 2).probability(B, (A,)) < 0.5


def test_it_knows_its_own_text_best():
    one, other = sentences(400, 1), [[BOS, *[C] * (n % 7), EOS] for n in range(400)]
    held_out = sentences(100, 2)
    assert sum(map(NGrams(one, V).nats, held_out)) < sum(map(NGrams(other, V).nats, held_out))
