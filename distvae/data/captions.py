"""The built-in corpus: scene captions of a probabilistic grammar, so that log p(x) of any sentence is exact.

One draw chooses what the whole picture shows: the scene, who is in it and how many, whether it is told as now or
as then, what they do and in which mood. These choices come back all over the sentence, in words far apart:
"A man was mending the nets at the pier while his crew sang ." shows the one man again in *his*, the past in *sang*,
the harbour in *nets*, *pier* and *crew*. What is left are even choices among a few words.
"""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from graphlib import TopologicalSorter
from itertools import accumulate, product
from typing import Any, NamedTuple, Protocol

Symbol = Hashable
Body = tuple[Symbol, ...]
Alternatives = Sequence[tuple[float, Body]]


class Random(Protocol):
    """A source of chance: `random.Random` and numpy's `Generator` are two."""

    def random(self) -> float: ...


@dataclass(frozen=True, eq=False)
class Grammar:
    """A probabilistic context-free grammar of finitely many sentences.

    `rules` gives each symbol its alternatives, as (probability, what the symbol becomes). A symbol without rules
    is a word, and a string.

    Raises ValueError where a symbol's probabilities are not positive or do not sum to one, where a symbol leads back
    to itself, and where a symbol that is not a string (`start` too) has no rules.
    """

    rules: Mapping[Symbol, Alternatives]
    start: Symbol

    def __post_init__(self) -> None:
        if self.start not in self.rules:
            raise ValueError(f"the start {self.start!r} has no rules")
        for symbol, alternatives in self.rules.items():
            probabilities = [probability for probability, _ in alternatives]
            if not all(p > 0 for p in probabilities) or not math.isclose(math.fsum(probabilities), 1):
                raise ValueError(f"the probabilities of {symbol!r} are not positive or do not sum to one")
        for symbol in self._parts_first:
            if symbol not in self.rules and not isinstance(symbol, str):
                raise ValueError(f"{symbol!r} is no word, and has no rules")

    def sample(self, rng: Random) -> list[str]:
        """Draw one sentence."""
        tokens, ahead = [], [self.start]
        while ahead:
            symbol = ahead.pop()
            if symbol in self.rules:
                steps, bodies = self._steps[symbol]
                # Rounding may leave the last step below one: the last body is drawn above it, too.
                ahead.extend(reversed(bodies[bisect(steps, rng.random(), hi=len(bodies) - 1)]))
            else:
                tokens.append(symbol)
        return tokens

    def log_probability(self, tokens: Sequence[str]) -> float:
        """log p of a sentence in nats, over all its derivations; -inf where the grammar cannot say it."""
        probability = self._inside(tokens, lambda probability: probability)
        return math.log(probability) if probability else -math.inf

    def derivations(self, tokens: Sequence[str]) -> int:
        """In how many ways the grammar can say a sentence."""
        return self._inside(tokens, lambda _: 1)

    def entropy(self) -> float:
        """The entropy of the sentences in nats: exact where each sentence has one derivation, else too high."""
        return self._fold(
            lambda _: 0.0,
            lambda alternatives: sum(p * (sum(parts) - math.log(p)) for p, parts in alternatives),
        )

    def words(self) -> list[str]:
        """Every word that a sentence may hold, sorted."""
        return sorted(
            self._fold(
                lambda word: {word},
                lambda alternatives: set().union(*(words for _, parts in alternatives for words in parts)),
            )
        )

    def lengths(self) -> set[int]:
        """Every number of tokens that a sentence may have."""
        return self._fold(
            lambda _: {1},
            lambda alternatives: {sum(lengths) for _, parts in alternatives for lengths in product(*parts)},
        )

    def sentences(self) -> Iterator[tuple[list[str], float]]:
        """Every derivation, as its tokens and its log probability in nats. Only for small grammars."""

        def expand(body: Body) -> Iterator[tuple[list[str], float]]:
            if not body:
                yield [], 0.0
                return
            first, rest = body[0], body[1:]
            if first in self.rules:
                for probability, inner in self.rules[first]:
                    for tokens, log_p in expand(inner + rest):
                        yield tokens, math.log(probability) + log_p
            else:
                for tokens, log_p in expand(rest):
                    yield [first, *tokens], log_p

        return expand((self.start,))

    @cached_property
    def _parts_first(self) -> list[Symbol]:
        """All symbols and words, each after those that it may become. A cycle raises ValueError."""
        parts = {s: {part for _, body in alternatives for part in body} for s, alternatives in self.rules.items()}
        return list(TopologicalSorter(parts).static_order())

    @cached_property
    def _steps(self) -> dict[Symbol, tuple[list[float], list[Body]]]:
        """The cumulative probabilities of each symbol's bodies, and the bodies."""
        return {
            symbol: (list(accumulate(p for p, _ in alternatives)), [body for _, body in alternatives])
            for symbol, alternatives in self.rules.items()
        }

    def _fold(self, of_word: Callable[[str], Any], of_alternatives: Callable[[list[tuple[float, list]]], Any]) -> Any:
        """The start's value, where a symbol's value follows from those of the parts of its alternatives."""
        values: dict[Symbol, Any] = {}
        for symbol in self._parts_first:
            if symbol in self.rules:
                parts = [(probability, [values[part] for part in body]) for probability, body in self.rules[symbol]]
                values[symbol] = of_alternatives(parts)
            else:
                values[symbol] = of_word(symbol)
        return values[self.start]

    def _inside(self, tokens: Sequence[str], weight: Callable[[float], Any]) -> Any:
        """The sum, over all derivations of the sentence, of the product of their rules' weights."""

        @cache
        def ends(symbol: Symbol, begin: int) -> dict[int, Any]:
            """Where the symbol may end that begins here, and the weight of all its ways to end there."""
            if symbol not in self.rules:
                return {begin + 1: 1} if begin < len(tokens) and tokens[begin] == symbol else {}
            total: dict[int, Any] = {}
            for probability, body in self.rules[symbol]:
                reached = {begin: weight(probability)}
                for part in body:
                    further: dict[int, Any] = {}
                    for middle, before in reached.items():
                        for end, inside in ends(part, middle).items():
                            further[end] = further.get(end, 0) + before * inside
                    reached = further
                    if not reached:
                        break
                for end, inside in reached.items():
                    total[end] = total.get(end, 0) + inside
            return total

        return ends(self.start, 0).get(len(tokens), 0)


# The lexicon. "/" parts alternatives, and within one, blanks part the tokens or the forms of a word.

# The words before the noun, by number.
DETERMINERS = {"one": "a / one / the", "many": "two / three / four / some / several"}
VERBS = {("one", "now"): "is", ("many", "now"): "are", ("one", "then"): "was", ("many", "then"): "were"}
COLOURS = "red / blue / green / yellow / white / black / brown / grey"

# What may follow the noun, and in which order: with a mood before the noun, and without. No sentence gets longer than
# 14 tokens.
SHAPES = {
    ("who first", "mood"): "does / does place / does manner / does place manner / does place company / "
    "does meanwhile / clothes does",
    ("who first", "no mood"): "does / does place / does place company / does place meanwhile / "
    "does manner meanwhile / clothes does place / clothes does manner / clothes does company",
    ("where first", "mood"): "does",
    ("where first", "no mood"): "does / does manner / does company",
}


class Kind(NamedTuple):
    """A kind of person."""

    nouns: str  # each as one, as many
    possessive: str  # of one; that of many is "their"
    company: str  # with whom they may be: with one, with many


PEOPLE = {
    "men": Kind(
        "man men / gentleman gentlemen / grandfather grandfathers",
        "his",
        "son sons / daughter daughters / neighbour neighbours",
    ),
    "women": Kind(
        "woman women / lady ladies / grandmother grandmothers",
        "her",
        "son sons / daughter daughters / neighbour neighbours",
    ),
    "boys": Kind(
        "boy boys / lad lads / schoolboy schoolboys", "his", "mother mothers / father fathers / cousin cousins"
    ),
    "girls": Kind(
        "girl girls / lass lasses / schoolgirl schoolgirls", "her", "mother mothers / father fathers / cousin cousins"
    ),
}


class Mood(NamedTuple):
    """How people look, said before the noun, and how they do things, said at the end."""

    looks: str
    manners: str


MOODS = {
    "happy": Mood("cheerful / smiling / merry", "with a grin / in high spirits / with great joy"),
    "tired": Mood("tired / sleepy / weary", "with heavy eyes / between long yawns / without much energy"),
    "careful": Mood("careful / patient / quiet", "with great care / in complete silence / with steady hands"),
    "hasty": Mood("hasty / nervous / restless", "in a hurry / without a pause / at full speed"),
}


class Scene(NamedTuple):
    """What a picture of one place may show."""

    activities: str
    places: str
    clothes: str  # each of one, of many
    meanwhile: str  # someone of theirs, what that one does, and did


SCENES = {
    "beach": Scene(
        "building a sandcastle / building a tower / collecting shells / collecting pebbles / "
        "chasing the waves / chasing a crab / swimming",
        "on the sand / by the sea / near the dunes / below the cliffs",
        "swimsuit swimsuits / hat hats",
        "friends surf surfed / dog barks barked",
    ),
    "park": Scene(
        "feeding the ducks / feeding the pigeons / throwing a frisbee / throwing sticks / "
        "flying a kite / flying paper planes / jogging",
        "near the pond / under the oak / by the fountain / along the path",
        "tracksuit tracksuits / cap caps",
        "dog plays played / twins chat chatted",
    ),
    "kitchen": Scene(
        "baking bread / baking a cake / stirring the soup / stirring a stew / "
        "chopping onions / chopping carrots / washing the dishes / washing glasses",
        "at the counter / beside the stove / near the sink / by the oven",
        "apron aprons / shirt shirts",
        "guests chat chatted / cat purrs purred",
    ),
    "market": Scene(
        "selling flowers / selling honey / buying cheese / buying a melon / "
        "weighing the fish / weighing plums / carrying a basket / carrying heavy bags",
        "at the stall / between the carts / outside the bakery / under the awning",
        "scarf scarves / apron aprons",
        "customers wait waited / donkey brays brayed",
    ),
    "farm": Scene(
        "milking the cow / milking a goat / feeding the hens / feeding a foal / "
        "stacking hay bales / stacking sacks / driving a tractor / driving the sheep",
        "in the barn / behind the stable / near the gate / across the field",
        "shirt shirts / hat hats",
        "horses graze grazed / rooster crows crowed",
    ),
    "mountain": Scene(
        "building a snowman / building an igloo / pulling a sled / pulling the luggage / "
        "climbing the ridge / climbing a glacier / skiing",
        "on the slope / below the summit / near the chalet / above the valley",
        "coat coats / scarf scarves",
        "guide points pointed / huskies bark barked",
    ),
    "library": Scene(
        "reading a novel / reading old maps / sorting the books / sorting magazines / "
        "writing an essay / writing short poems / whispering",
        "between the shelves / at the desk / in the alcove / near the window",
        "sweater sweaters / blazer blazers",
        "students study studied / laptop hums hummed",
    ),
    "stage": Scene(
        "playing the violin / playing a guitar / singing a ballad / singing old hymns / "
        "tuning the piano / tuning a harp / dancing",
        "on the stage / behind the curtain / under the spotlights / before the orchestra",
        "costume costumes / hat hats",
        "audience claps clapped / fans cheer cheered",
    ),
    "pitch": Scene(
        "kicking the ball / kicking a penalty / guarding the goal / guarding a striker / "
        "practising headers / practising long passes / stretching",
        "on the pitch / near the touchline / beside the dugout / inside the stadium",
        "jersey jerseys / tracksuit tracksuits",
        "coach shouts shouted / teammates sprint sprinted",
    ),
    "garden": Scene(
        "watering the roses / watering sunflowers / planting tulips / planting a tree / "
        "raking leaves / raking the lawn / picking tomatoes / picking pears",
        "behind the cottage / beside the greenhouse / along the hedge / near the gate",
        "raincoat raincoats / sweater sweaters",
        "tortoise dozes dozed / bees buzz buzzed",
    ),
    "harbour": Scene(
        "mending the nets / mending a sail / rowing a boat / rowing the dinghy / "
        "unloading barrels / unloading crates / fishing",
        "at the pier / by the lighthouse / along the quay / below the cliffs",
        "raincoat raincoats / cap caps",
        "captain smokes smoked / crew sings sang",
    ),
    "forest": Scene(
        "pitching a tent / pitching the shelter / gathering mushrooms / gathering berries / "
        "following deer tracks / following a stream / hiking",
        "among the pines / near the campfire / beside the brook / along the path",
        "sweater sweaters / cap caps",
        "hounds sniff sniffed / ranger nods nodded",
    ),
    "workshop": Scene(
        "repairing a bicycle / repairing old clocks / sawing the planks / sawing logs / "
        "painting a chair / painting the shutters / welding",
        "at the workbench / inside the garage / near the lathe / beside the toolbox",
        "helmet helmets / apron aprons",
        "apprentice sweeps swept / colleagues hammer hammered",
    ),
    "museum": Scene(
        "sketching a statue / sketching the fossils / admiring portraits / admiring the mummy / "
        "photographing vases / photographing a skeleton / dusting the armour / dusting coins",
        "in the gallery / under the dome / beside the entrance / behind the column",
        "blazer blazers / jacket jackets",
        "pupils giggle giggled / tutor points pointed",
    ),
    "station": Scene(
        "awaiting the train / awaiting an express / dragging a suitcase / dragging trunks / "
        "checking the timetable / checking tickets / boarding a tram / boarding the carriage",
        "on the platform / beside the entrance / under the clock / outside the station",
        "jacket jackets / scarf scarves",
        "relatives wave waved / baby cries cried",
    ),
    "laboratory": Scene(
        "mixing chemicals / mixing a solution / examining bacteria / examining a slide / "
        "heating the beakers / heating a flask / recording temperatures / recording the results",
        "in the laboratory / near the microscope / beside the sink / behind the curtain",
        "coat coats / mask masks",
        "assistant scribbles scribbled / students gasp gasped",
    ),
}


def split(text: str) -> list[tuple[str, ...]]:
    """The alternatives of a lexicon entry, each as its words: "a kite / ducks" is [("a", "kite"), ("ducks",)]."""
    return [tuple(part.split()) for part in text.split("/")]


def capitalised(bodies: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The same bodies as the beginnings of sentences."""
    return [(first.capitalize(), *rest) for first, *rest in bodies]


def even(bodies: Sequence[Body]) -> Alternatives:
    """These bodies, each as likely as the other."""
    return [(1 / len(bodies), body) for body in bodies]


@cache
def grammar() -> Grammar:
    """The grammar of the captions. Each symbol names, after what it is, the choices that its words show."""
    rules: dict[Symbol, Alternatives] = {}

    rules[("colour",)] = even(split(COLOURS))
    for number, determiners in DETERMINERS.items():
        rules["determiner", number] = even(split(determiners))
        rules["Determiner", number] = even(capitalised(split(determiners)))

    for mood, (looks, manners) in MOODS.items():
        rules["look", mood] = even(split(looks))
        rules["manner", mood] = even(split(manners))
    # Where no mood stands before the noun, any may show at the end.
    rules["look", None] = even([()])
    rules["manner", None] = even([(("manner", mood),) for mood in MOODS])

    for kind, (nouns, possessive, company) in PEOPLE.items():
        for number, form, whose in (("one", 0, possessive), ("many", 1, "their")):
            rules["noun", kind, number] = even([(forms[form],) for forms in split(nouns)])
            rules["company", kind, number] = even(
                [(link, whose, forms[form]) for link in ("with", "alongside") for forms in split(company)]
            )

    for scene, (activities, places, clothes, meanwhile) in SCENES.items():
        rules["place", scene] = even(split(places))
        rules["Place", scene] = even(capitalised(split(places)))
        rules["clothes", scene, "one"] = even([("in", "a", ("colour",), one) for one, _ in split(clothes)])
        rules["clothes", scene, "many"] = even([("in", ("colour",), many) for _, many in split(clothes)])
        for (number, tense), verb in VERBS.items():
            rules["does", scene, number, tense] = even([(verb, *activity) for activity in split(activities)])
        for whose, (tense, form) in product(("his", "her", "their"), (("now", 1), ("then", 2))):
            rules["meanwhile", scene, tense, whose] = even(
                [(link, whose, forms[0], forms[form]) for link in ("while", "as") for forms in split(meanwhile)]
            )

    def endings(order: str, scene: str, kind: str, number: str, mood: str | None) -> list[Body]:
        """All that may follow the noun."""
        shapes = split(SHAPES[order, "mood" if mood else "no mood"])
        whose = PEOPLE[kind].possessive if number == "one" else "their"
        bodies: list[Body] = []
        for tense in ("now", "then"):
            parts = {
                "clothes": ("clothes", scene, number),
                "does": ("does", scene, number, tense),
                "place": ("place", scene),
                "manner": ("manner", mood),
                "company": ("company", kind, number),
                "meanwhile": ("meanwhile", scene, tense, whose),
            }
            bodies += [(*(parts[name] for name in shape), ".") for shape in shapes]
        return bodies

    # What a sentence says first is chosen first. So its first words rule out most of the grammar at once, which
    # makes its probability quick to find.
    people = list(product(PEOPLE, DETERMINERS, (None, *MOODS)))
    for kind, number, mood in people:
        noun = (("look", mood), ("noun", kind, number))
        rules["Person", kind, number, mood] = even([(("Determiner", number), *noun)])
        rules["person", kind, number, mood] = even([(("determiner", number), *noun)])
        rules["after", kind, number, mood] = even(
            [end for scene in SCENES for end in endings("who first", scene, kind, number, mood)]
        )
    for scene in SCENES:
        rules["after", scene] = even(
            [(("person", *who), *end) for who in people for end in endings("where first", scene, *who)]
        )
    rules[("who first",)] = even([(("Person", *who), ("after", *who)) for who in people])
    rules[("where first",)] = even([(("Place", scene), ",", ("after", scene)) for scene in SCENES])
    rules[("caption",)] = [(0.8, (("who first",),)), (0.2, (("where first",),))]
    return Grammar(rules, ("caption",))


def generate(count: int, seed: int | Sequence[int]) -> list[list[str]]:
    """Independent draws, as tokens. A larger count begins with the draws of a smaller one.

    The same on every platform: Python promises that what a string seeds stays the same. Each different seed, or
    tuple such as (seed, split), draws sentences of its own; n and (n,) are one seed.
    """
    numbers = seed if isinstance(seed, Sequence) else (seed,)
    rng = random.Random(" ".join(str(int(number)) for number in numbers))
    return [grammar().sample(rng) for _ in range(count)]


def log_probability(tokens: Sequence[str]) -> float:
    """log p of a caption in nats; -inf for what is none."""
    return grammar().log_probability(tokens)


def words() -> list[str]:
    """Every word that a caption may hold, sorted."""
    return grammar().words()


def entropy() -> float:
    """The entropy of a caption in nats: exact, as each has one derivation."""
    return grammar().entropy()
