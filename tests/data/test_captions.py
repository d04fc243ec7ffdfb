import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest
from nltk.tokenize import NLTKWordTokenizer
from nltk.tokenize.treebank import TreebankWordDetokenizer

from distvae.data import captions
from distvae.data.captions import Grammar, generate, grammar, log_probability

SMALL = Grammar(
    {
        "S": [(0.5, ("N", "V")), (0.3, ("N", "V", "N")), (0.2, ("hush",))],
        "N": [(0.25, ("dogs",)), (0.75, ("small", "M"))],
        "M": [(0.5, ("cats",)), (0.5, ("mice",))],
        "V": [(0.6, ("see",)), (0.4, ())],
    },
    "S",
)

CAPTION = "A man is mending the nets at the pier while his crew sings ."


@pytest.fixture(scope="module")
def drawn() -> list[list[str]]:
    return generate(20_000, 7)


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
        ({"S": [(1.0, (("noun", "many"),))]}, "no word"),
        ({"A": [(1.0, ("a",))]}, "start"),
    ],
)
def test_bad_grammars_are_refused(rules, message):
    with pytest.raises(ValueError, match=message):
        Grammar(rules, "S")


@pytest.mark.parametrize(
    "start", [("after", "men", "one", "happy"), ("after", "girls", "many", None), ("after", "farm")]
)
def test_parts_of_the_captions_sum_to_one_and_say_nothing_twice(start):
    rules = dict(grammar().rules)
    rules["colour",] = [(1.0, ("red",))]  # fewer to enumerate
    part = Grammar(rules, start)
    sentences = list(part.sentences())
    assert len(sentences) > 5_000
    assert len({tuple(tokens) for tokens, _ in sentences}) == len(sentences)
    assert math.fsum(math.exp(log_p) for _, log_p in sentences) == pytest.approx(1)
    assert part.entropy() == pytest.approx(-math.fsum(math.exp(log_p) * log_p for _, log_p in sentences))
    for tokens, log_p in sentences[::500]:
        assert part.log_probability(tokens) == pytest.approx(log_p)


def test_entropy_is_the_mean_of_minus_log_p(drawn):
    nats = np.array([-log_probability(tokens) for tokens in drawn[:2500]])
    assert abs(nats.mean() - captions.entropy()) < 4 * nats.std() / math.sqrt(len(nats))
    assert 14 < captions.entropy() < 19


def test_every_caption_has_one_derivation(drawn):
    assert {grammar().derivations(tokens) for tokens in drawn[2500:5000]} == {1}


def test_captions_have_5_to_14_tokens_and_one_full_stop(drawn):
    assert grammar().lengths() == set(range(5, 15)) == {len(tokens) for tokens in drawn}
    assert all(tokens.index(".") == len(tokens) - 1 and tokens[0][0].isupper() for tokens in drawn)


def test_captions_use_several_hundred_words(drawn):
    words = captions.words()
    assert 300 <= len(words) <= 500
    assert words == sorted({word for tokens in drawn for word in tokens})


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("is", "are"),  # number
        ("man", "men"),
        ("his", "her"),  # gender
        ("his", "their"),
        ("sings", "sang"),  # tense
        ("is", "was"),
        ("pier", "barn"),  # scene
        ("crew", "cat"),
        ("nets", "roses"),  # activity
        ("A", "a"),  # the beginning
    ],
)
def test_no_caption_breaks_an_agreement(good, bad):
    tokens = CAPTION.split()
    assert log_probability(tokens) > -20
    assert log_probability([bad if token == good else token for token in tokens]) == -math.inf


@pytest.mark.parametrize(("manner", "said"), [("between long yawns", True), ("with great joy", False)])
def test_mood_before_the_noun_returns_at_the_end(manner, said):
    assert math.isfinite(log_probability(f"Two weary girls were jogging {manner} .".split())) == said


def test_far_apart_words_are_tied(drawn):
    """The verb foretells the place that the caption ends with far better than the words just before it do."""
    verbs = [next(i for i, token in enumerate(tokens) if token in ("is", "are", "was", "were")) + 1 for tokens in drawn]
    far = [
        (tokens[-4], tokens[verb], tokens[-2])  # such as: at, mending, pier
        for tokens, verb in zip(drawn, verbs, strict=True)
        if tokens[-3] == "the" and verb + 4 <= len(tokens) - 2
    ]
    half = len(far) // 2
    assert half > 500

    def hits(*known: int) -> float:
        """How often the last word is the one that was most common, in the first half, with what is known."""
        seen = defaultdict(Counter)
        for words in far[:half]:
            seen[tuple(words[i] for i in known)][words[-1]] += 1
        guesses = {context: lasts.most_common(1)[0][0] for context, lasts in seen.items()}
        return sum(guesses.get(tuple(words[i] for i in known)) == words[-1] for words in far[half:]) / half

    assert hits(0) < 0.4
    assert hits(0, 1) > 0.8


def test_draws_depend_on_the_seed_alone_and_begin_alike(drawn):
    assert generate(100, 7) == drawn[:100]
    assert generate(50, (7, 1)) == generate(60, [7, 1])[:50]
    assert generate(0, 7) == []
    firsts = [generate(5, seed) for seed in (7, 8, 71, (7, 0), (7, 1), (1, 7))]
    assert all(a != b for i, a in enumerate(firsts) for b in firsts[:i])
    state = random.getstate()
    generate(5, 7)
    assert random.getstate() == state


def test_draws_are_the_same_on_every_machine():
    assert " ".join(generate(1, (0, 1))[0]) == "Several weary gentlemen were mending a sail between long yawns ."


def test_tokens_come_back_from_nltk(drawn):
    tokenizer, detokenizer = NLTKWordTokenizer(), TreebankWordDetokenizer()
    for tokens in drawn[:3000]:
        assert tokenizer.tokenize(detokenizer.detokenize(tokens)) == tokens
