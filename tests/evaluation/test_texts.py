"""Statistics of sentences, on sentences whose statistics are known."""

from __future__ import annotations

import random

import numpy as np
import pytest

from distvae.evaluation.ngrams import NGrams
from distvae.evaluation.texts import SELF_BLEU_SENTENCES, Comparison

BOS, EOS = 0, 1
V = 30


def ids(*words: int) -> list[int]:
    return [BOS, *words, EOS]


def drawn(count: int, seed: int, words: range = range(2, V)) -> list[list[int]]:
    rng = random.Random(seed)
    return [ids(*rng.choices(words, k=rng.randint(4, 9))) for _ in range(count)]


TRAIN, TEST = drawn(300, 0), drawn(100, 1)
COMPARISON = Comparison(TRAIN, TEST, V)


def test_sentences_of_train_are_copied():
    found = COMPARISON.statistics(TRAIN[:50])
    assert (found.copied, found.copied_4grams) == (1, 1)
    other = COMPARISON.statistics([*TRAIN[:1], ids(2, 2, 2, 2, 2, 2, 2)])
    assert other.copied == 0.5
    own = len(TRAIN[0]) - 5  # 4-grams
    assert other.copied_4grams == pytest.approx(own / (own + 4))


def test_distinct_words_and_bigrams_by_hand():
    found = COMPARISON.statistics([ids(2, 3, 2), ids(2, 3)])
    assert found.distinct_1 == 2 / 5
    assert found.distinct_2 == 2 / 3  # 2 3, 3 2, 2 3
    assert found.length.mean == 3.5
    assert found.copied_4grams is None


def test_equal_sentences_are_all_alike_and_different_ones_are_not():
    same = COMPARISON.statistics([ids(2, 3, 4, 5, 6)] * 10)
    assert same.self_bleu.mean == pytest.approx(1)
    apart = COMPARISON.statistics([ids(*range(start, start + 5)) for start in range(2, 27, 5)])
    assert apart.self_bleu.mean < 0.05
    assert same.distinct_1 == 5 / 50
    assert apart.distinct_1 == 1


def test_self_bleu_of_two_sentences_by_hand():
    # Of 2 3 4 5 beside 2 3 4 6: precisions 3/4, 2/3, 1/2, and 0 of 1, which counts as 0.1 (NLTK's method 1).
    found = COMPARISON.statistics([ids(2, 3, 4, 5), ids(2, 3, 4, 6)])
    assert found.self_bleu.mean == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 0.1) ** 0.25)


def test_only_the_first_sentences_are_compared_with_each_other():
    sentences = drawn(SELF_BLEU_SENTENCES + 30, 3)
    found = COMPARISON.statistics(sentences)
    assert found.self_bleu == COMPARISON.statistics(sentences[:SELF_BLEU_SENTENCES]).self_bleu


def test_perplexities_are_those_of_the_models():
    sentences = drawn(100, 4)
    found = COMPARISON.statistics(sentences)
    for value, model, scored in (
        (found.forward_ppl, NGrams(TRAIN, V), sentences),
        (found.reverse_ppl, NGrams(sentences, V), TEST),
    ):
        nats = sum(map(model.nats, scored))
        assert value.mean == pytest.approx(np.exp(nats / sum(len(sentence) - 1 for sentence in scored)))


def test_real_text_of_the_same_kind_has_the_lowest_perplexities():
    real = COMPARISON.statistics(drawn(200, 5))
    poor = COMPARISON.statistics(drawn(200, 6, range(2, 6)))  # knows four words
    assert poor.reverse_ppl.mean > 2 * real.reverse_ppl.mean
    other = Comparison(drawn(300, 0, range(2, 16)), TEST, V).statistics(drawn(200, 7, range(16, V)))
    assert other.forward_ppl.mean > 2 * real.forward_ppl.mean


def test_one_sentence_and_empty_ones():
    one = COMPARISON.statistics([ids(5)])
    assert one.self_bleu is None
    assert one.length.standard_error is None
    empty = COMPARISON.statistics([ids(), ids()])
    assert empty.self_bleu.mean == 0
    assert (empty.distinct_1, empty.distinct_2, empty.length.mean) == (0, 0, 1)
