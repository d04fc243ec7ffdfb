import math
import random
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from distvae.data import captions
from distvae.data.captions import generate, grammar, log_probability
from distvae.data.grammar import Grammar
from distvae.tokenization import BUILT_IN

CAPTION = "A man is mending the nets at the pier while his crew sings ."


@pytest.fixture(scope="module")
def drawn() -> list[list[str]]:
    return generate(20_000, 7)


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


def test_factors_are_those_of_an_example():
    ((tokens, factors),) = captions.draw(1, (0, 1))
    assert " ".join(tokens) == "Several weary gentlemen were mending a sail between long yawns ."
    assert factors == ("men", "many", "tired", "harbour", "mending a sail", "then", "who first", "does manner")


def test_factors_agree_with_the_words():
    """Read each factor off the words by the lexicon, without the grammar."""
    drawn = captions.draw(5_000, 3)
    nouns = {form: who for who, kind in captions.PEOPLE.items() for form in kind.nouns.replace("/", "").split()}
    looks = {look: mood for mood, entry in captions.MOODS.items() for look in entry.looks.split(" / ")}
    manners = {manner: mood for mood, entry in captions.MOODS.items() for manner in entry.manners.split(" / ")}
    verbs = {verb: choices for choices, verb in captions.VERBS.items()}
    for tokens, found in drawn:
        text = " ".join(tokens)
        assert {nouns[token] for token in tokens if token in nouns} == {found.who}
        verb = next(i for i, token in enumerate(tokens) if token in verbs)
        assert verbs[tokens[verb]] == (found.number, found.tense)
        assert text.split(f" {tokens[verb]} ")[1].startswith(found.activity)
        assert found.activity in captions.SCENES[found.scene].activities.split(" / ")
        moods = [looks[token] for token in tokens if token in looks]
        moods += [mood for manner, mood in manners.items() if f" {manner} " in text]
        assert set(moods or ["none"]) == {found.mood}
        assert ("," in tokens) == (found.order == "where first")
        parts = found.shape.split()
        assert ("manner" in parts) == any(f" {manner} " in text for manner in manners)
        assert ("meanwhile" in parts) == bool({"while", "as"} & set(tokens))
        assert ("company" in parts) == bool(re.search(r" (with|alongside) (his|her|their) ", text))
        assert ("clothes" in parts) == bool(set(captions.COLOURS.split(" / ")) & set(tokens))
        places = captions.SCENES[found.scene].places.split(" / ")
        assert ("place" in parts) == (found.order == "who first" and any(place in text for place in places))


def test_every_choice_of_a_factor_is_drawn():
    drawn = [factors for _, factors in captions.draw(20_000, 5)]
    expected = {
        "who": set(captions.PEOPLE), "number": {"one", "many"}, "mood": {*captions.MOODS, "none"},
        "scene": set(captions.SCENES), "tense": {"now", "then"}, "order": {"who first", "where first"},
        "activity": {part for scene in captions.SCENES.values() for part in scene.activities.split(" / ")},
        "shape": {part for shapes in captions.SHAPES.values() for part in shapes.split(" / ")},
    }  # fmt: skip
    assert expected.keys() == set(captions.Factors._fields)
    for name, values in expected.items():
        assert {getattr(factors, name) for factors in drawn} == values


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


def test_tokens_come_back_whichever_tokenizer_joins_them(drawn):
    words, treebank = BUILT_IN["words"], BUILT_IN["treebank"]
    for tokens in drawn[:3000]:
        text = words.join(tokens)
        assert text == treebank.join(tokens)
        assert words.tokenize(text) == treebank.tokenize(text) == tokens
