import math
import random
from collections import Counter

import numpy as np
import pytest

from distvae.data.grammar import Grammar

SMALL = Grammar(
    {
        "S": [(0.5, ("N", "V")), (0.3, ("N", "V", "N")), (0.2, ("hush",))],
        "N": [(0.25, ("dogs",)), (0.75, ("small", "M"))],
        "M": [(0.5, ("cats",)), (0.5, ("mice",))],
        "V": [(0.6, ("see",)), (0.4, ())],
    },
    "S",
)


def test_small_grammar_sums_to_one_and_each_sentence_has_its_enumerated_probability():
    sentences = list(SMALL.sentences())
    assert len({tuple(tokens) for tokens, _ in sentences}) == len(sentences) == 25
    assert math.fsum(math.exp(log_p) for _, log_p in sentences) == pytest.approx(1)
    for tokens, log_p in sentences:
        assert SMALL.log_probability(tokens) == pytest.approx(log_p)
        assert SMALL.derivations(tokens) == 1
    assert SMALL.log_probability(["small", "mice", "see", "dogs"]) == pytest.approx(
        math.log(0.3 * 0.75 * 0.5 * 0.6 * 0.25)
    )


def test_small_grammar_entropy_lengths_and_words_are_those_of_its_enumeration():
    sentences = list(SMALL.sentences())
    assert SMALL.entropy() == pytest.approx(-math.fsum(math.exp(log_p) * log_p for _, log_p in sentences))
    assert SMALL.lengths() == {len(tokens) for tokens, _ in sentences} == {1, 2, 3, 4, 5}
    assert SMALL.words() == sorted({word for tokens, _ in sentences for word in tokens})


@pytest.mark.parametrize("rng", [random.Random(3), np.random.default_rng(3)], ids=["random", "numpy"])
def test_small_grammar_draws_with_its_probabilities(rng):
    count = 20_000
    seen = Counter(tuple(SMALL.sample(rng)) for _ in range(count))
    expected = {tuple(tokens): count * math.exp(log_p) for tokens, log_p in SMALL.sentences()}
    assert set(seen) <= set(expected)
    chi_square = sum((seen[tokens] - mean) ** 2 / mean for tokens, mean in expected.items())
    assert 4 < chi_square < 56.4  # all but 2 in 10,000 of the chi-square distribution with 24 degrees of freedom


@pytest.mark.parametrize("tokens", [[], ["dogs", "hush"], ["small"], ["small", "dogs"], ["hush", "hush"], ["cats"]])
def test_small_grammar_knows_what_it_cannot_say(tokens):
    assert SMALL.log_probability(tokens) == -math.inf
    assert SMALL.derivations(tokens) == 0


def test_ambiguous_sentences_sum_over_their_derivations():
    other_symbols = Grammar(
        {
            "S": [(0.25, ("a", "B")), (0.75, ("A", "b"))],
            "A": [(0.5, ("a",)), (0.5, ("c",))],
            "B": [(0.2, ("b",)), (0.8, ("d",))],
        },
        "S",
    )
    assert other_symbols.derivations(["a", "b"]) == 2
    assert other_symbols.log_probability(["a", "b"]) == pytest.approx(math.log(0.25 * 0.2 + 0.75 * 0.5))
    assert other_symbols.derivations(["a", "d"]) == 1

    other_spans = Grammar({"S": [(1.0, ("A", "A"))], "A": [(0.3, ("a",)), (0.7, ("a", "a"))]}, "S")
    assert other_spans.derivations(["a"] * 3) == 2
    assert other_spans.log_probability(["a"] * 3) == pytest.approx(math.log(2 * 0.3 * 0.7))
    assert other_spans.derivations(["a"] * 4) == 1


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"S": [(0.5, ("a",)), (0.4, ("b",))]}, "sum to one"),
        ({"S": [(1.5, ("a",)), (-0.5, ("b",))]}, "not positive"),
        ({"S": []}, "sum to one"),
        ({"S": [(0.5, ("a",)), (0.5, ("A",))], "A": [(1.0, ("b", "S"))]}, "cycle"),
        ({"S": [(1.0, (("noun", "many"),))]}, "not a word"),
        ({"A": [(1.0, ("a",))]}, "start"),
    ],
)
def test_bad_grammars_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        Grammar(rules, "S")
