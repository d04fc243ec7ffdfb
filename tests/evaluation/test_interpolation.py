"""Paths whose distances are known, and a toy whose lines are straight."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nltk.metrics.distance import edit_distance as nltk_distance

from distvae.cli import main
from distvae.data.sentences import Sentences
from distvae.data.vocabulary import Vocabulary
from distvae.evaluation import interpolation
from distvae.evaluation.decoding import Decoding
from distvae.evaluation.interpolation import Paths, draw_pairs, edit_distance, interpolate
from distvae.evaluation.ngrams import NGrams
from distvae.model.posterior import Posterior
from distvae.system.errors import UserError

BOS, EOS, V = 0, 1, 30
WORDS = st.lists(st.integers(2, 5), max_size=8)


def ids(*words: int) -> list[int]:
    return [BOS, *words, EOS]


NGRAMS = NGrams([ids(2, 3, 4), ids(2, 4)], V)


def of(*paths: list[list[int]], seed: int = 0) -> Paths:
    return Paths.of(paths, NGRAMS, seed)


# Each sentence is an edit away from the next, and the ends are four edits apart.
STRAIGHT = [ids(2, 2, 2, 2), ids(2, 2, 2, 3), ids(2, 2, 3, 3), ids(2, 3, 3, 3), ids(3, 3, 3, 3)]


@given(WORDS, WORDS)
def test_edit_distance_is_the_one_of_another_implementation(one, other):
    assert edit_distance(one, other) == nltk_distance(one, other)
    assert edit_distance(ids(*one), ids(*other)) == edit_distance(one, other)


@given(WORDS, WORDS, WORDS)
def test_edit_distance_is_a_metric(one, other, third):
    apart = edit_distance(one, other)
    assert (apart == 0) == (one == other)
    assert apart == edit_distance(other, one)
    assert edit_distance(one, third) <= apart + edit_distance(other, third)


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("abc", "abc", 0), ("ab", "ba", 2), ("abcd", "bcd", 1)],
)
def test_edit_distance_by_hand(one, other, distance):
    assert edit_distance([ord(letter) for letter in one], [ord(letter) for letter in other]) == distance


def test_a_straight_path():
    found = of(STRAIGHT)
    assert (found.pairs, found.points) == (1, 5)
    assert found.smoothness.mean == 1
    assert found.largest_step.mean == 1 / 4
    assert (found.different.mean, found.distance.mean, found.same_ends.mean) == (5, 4, 0)
    assert found.smoothness.standard_error is None


def test_a_jump_is_straight_too_and_the_largest_step_tells():
    a, b = ids(2, 2, 2), ids(3, 3, 3)
    found = of([a, a, a, b, b])
    assert (found.smoothness.mean, found.largest_step.mean, found.different.mean) == (1, 1, 2)


def test_a_detour():
    """Two edits to what shares no word, two from there to the other end, and the ends are an edit apart."""
    found = of([ids(2, 2), ids(4, 4), ids(2, 3)])
    assert found.smoothness.mean == 1 / 4
    assert found.largest_step.mean == 1 / 2
    assert found.shuffled == found.smoothness  # one inner sentence has one order


def test_a_path_through_sentences_that_are_equally_far_apart():
    found = of([ids(*[word] * 3) for word in range(2, 13)])
    assert (found.smoothness.mean, found.shuffled.mean) == (pytest.approx(1 / 10), pytest.approx(1 / 10))


def test_the_shuffled_path_has_the_same_sentences_in_the_order_of_the_seed():
    found = of(STRAIGHT, STRAIGHT[::-1], seed=7)
    rng = random.Random(7)
    expected = []
    for path in (STRAIGHT, STRAIGHT[::-1]):
        order = [path[0], *rng.sample(path[1:-1], 3), path[-1]]
        threes = [row.count(3) for row in order]  # a sentence of STRAIGHT is as far from another as these are
        expected.append(4 / np.abs(np.diff(threes)).sum())
    assert found.shuffled.mean == pytest.approx(np.mean(expected))
    assert found == of(STRAIGHT, STRAIGHT[::-1], seed=7)
    assert len({of(STRAIGHT, seed=seed).shuffled.mean for seed in range(9)}) > 1


@given(st.lists(st.lists(WORDS, min_size=4, max_size=4), min_size=1, max_size=3), st.integers(0, 99))
def test_figures_are_within_their_bounds(paths, seed):
    found = of(*([ids(*words) for words in path] for path in paths), seed=seed)
    if found.smoothness is None:
        assert found.same_ends.mean == 1
        return
    assert 0 < found.smoothness.mean <= 1 + 1e-12
    assert 0 < found.shuffled.mean <= 1 + 1e-12
    assert 1 / 3 - 1e-12 <= found.largest_step.mean <= 1
    assert 1 <= found.different.mean <= 4


def test_equal_ends_have_no_smoothness_and_are_counted():
    same = [ids(2), ids(3), ids(2)]
    found = of(STRAIGHT[:3], same, STRAIGHT[:3], same)
    assert found.same_ends.mean == 0.5
    assert found.smoothness.mean == 1
    assert found.smoothness.standard_error == 0
    assert (found.distance.mean, found.different.mean) == (1, 2.5)
    collapsed = of([ids(2)] * 3, [ids(2)] * 3)
    assert (collapsed.smoothness, collapsed.shuffled, collapsed.largest_step) == (None, None, None)
    assert (collapsed.same_ends.mean, collapsed.different.mean) == (1, 1)
    assert collapsed.inner_ppl.mean == pytest.approx(collapsed.ends_ppl.mean)


def test_perplexities_are_those_of_the_ends_and_of_what_is_between():
    found = of(STRAIGHT, [ids(2, 3, 4), ids(5), ids(), ids(5), ids(2, 4)])
    for value, sentences in (
        (found.ends_ppl, [STRAIGHT[0], STRAIGHT[-1], ids(2, 3, 4), ids(2, 4)]),
        (found.inner_ppl, [*STRAIGHT[1:-1], ids(5), ids(), ids(5)]),
    ):
        tokens = sum(len(sentence) - 1 for sentence in sentences)
        assert value.mean == pytest.approx(np.exp(sum(map(NGRAMS.nats, sentences)) / tokens))
    # Sentences of a path resemble each other, so repeating them adds no evidence.
    twice = of(*([path[0], *path[1:-1] * 2, path[-1]] for path in (STRAIGHT, STRAIGHT[:2] + STRAIGHT[:3])))
    once = of(STRAIGHT, STRAIGHT[:2] + STRAIGHT[:3])
    assert twice.inner_ppl.standard_error == pytest.approx(once.inner_ppl.standard_error)


def test_pairs_share_no_sentence_and_more_begin_with_fewer():
    numbers = draw_pairs(20, 7, seed=3)
    assert len(numbers) == len({*numbers}) == 14
    assert draw_pairs(20, 4, seed=3) == numbers[:8]
    assert len(draw_pairs(21, 500, seed=3)) == 20
    assert draw_pairs(20, 7, seed=4) != numbers
    with pytest.raises(UserError, match="has 1 of the two sentences"):
        draw_pairs(1, 5, seed=0)


LENGTH = 8


class _Thresholds:
    """A decoder of z in [0, 1]: that share of eight words are ``b``, the others ``a``."""

    def __init__(self, vocabulary: Vocabulary):
        self.a, self.b = vocabulary.encode(["a", "b"])[1:-1]
        self.eos, self.output = vocabulary.eos, SimpleNamespace(weight=torch.zeros(len(vocabulary), 1))

    def initial_state(self, z):
        return 0

    def __call__(self, tokens, z, step):
        logits = torch.zeros(len(z), 1, len(self.output.weight))
        for row, value in enumerate(z[:, 0].tolist()):
            logits[row, 0, self.eos if step == LENGTH else self.b if step < round(LENGTH * value) else self.a] = 9
        return logits, step + 1


@pytest.fixture
def toy(monkeypatch):
    """A model whose z is the share of ``b`` in a sentence, and sentences of ``a`` and ``b`` alone."""
    vocabulary = Vocabulary.closed(["a", "b"])
    decoder = _Thresholds(vocabulary)
    rows = [[vocabulary.bos, *[word] * LENGTH, vocabulary.eos] for word in (decoder.a, decoder.b)]

    def encode(model, ids):
        share = torch.tensor([[row.count(decoder.b) / LENGTH] for row in ids])
        return Posterior(share, torch.zeros_like(share))

    monkeypatch.setattr(interpolation, "encode", encode)
    corpus = SimpleNamespace(vocabulary=vocabulary, train=Sentences.of(rows), test=Sentences.of(rows))
    return SimpleNamespace(latent_size=1, decoder=decoder), corpus


def test_lines_of_a_linear_toy_are_straight(toy):
    model, corpus = toy
    steps: list[int] = []
    found = interpolate(model, corpus, [0, 1], 9, Decoding(seed=1), steps.append)
    assert (found.pairs, found.points, sum(steps)) == (1, 9, 9)
    assert (found.smoothness.mean, found.distance.mean) == (1, LENGTH)
    assert found.largest_step.mean == 1 / LENGTH
    assert found.different.mean == 9
    assert found.shuffled.mean < 0.7


def test_the_command_walks_between_test_sentences(finished, said):
    found = json.loads(said("interpolate", finished, "--statistics", "--steps", "5", "--json"))
    assert (found["pairs"], found["points"]) == (10, 5)  # of twenty sentences
    assert found["decoding"]["method"] == "greedy"
    assert 0 <= found["same_ends"]["mean"] <= 1
    again = json.loads(said("interpolate", finished, "--statistics", "--steps", "5", "--json", "-n", "99"))
    assert again == found
    fewer = json.loads(said("interpolate", finished, "--statistics", "-n", "3", "--seed", "2", "--json"))
    assert (fewer["pairs"], fewer["points"]) == (3, 11)
    shown = said("interpolate", finished, "--statistics", "--method", "sample").splitlines()
    assert shown[0].strip() == "10 pairs of test sentences, 11 points"
    assert len(shown) == 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--statistics", "--start", "A man ."], "--statistics: goes between test sentences of the run"),
        (["--statistics", "--steps", "2"], "--steps 2: --statistics needs a point between the ends"),
        (["-n", "3"], "--count: is the number of pairs of --statistics"),
    ],
)
def test_bad_input_is_one_line(finished, said, words, message):
    line = said("interpolate", finished, *words, code=2)
    assert line.startswith(f"distvae: {message}")
    assert line.count("\n") == 1


def test_a_language_model_has_no_lines(language_model, capsys):
    assert main(["interpolate", str(language_model), "--statistics"]) == 2
    expected = f"distvae: {language_model}: is a language model; it has no latent variable to interpolate in\n"
    assert capsys.readouterr().err == expected
