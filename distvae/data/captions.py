"""The built-in corpus: scene captions from a probabilistic grammar that gives the exact log p(x) of any sentence.

One draw sets what the picture shows: the scene, the people and their number, the tense, what they do, and the mood.
Each choice reappears in several, distant words. In "A man was mending the nets at the pier while his crew sang .",
*his* repeats the one man, *sang* the past, and *nets*, *pier* and *crew* the harbour. The remaining choices are uniform
over a few words.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import product
from typing import NamedTuple

from distvae.data.grammar import Alternatives, Body, Grammar, Symbol

# Identifies the grammar in the fingerprint of a corpus. Change it whenever a sentence or a probability changes; a test
# fails until it is changed. (It is the SHA-256 of the grammar's first source file.)
GRAMMAR = "5aa6fbf753539a9cfe8c8d4061bffed0544260ddad463a18fc487ebfe544ccd2"

# The lexicon. "/" separates alternatives; spaces within one separate tokens or the forms of a word.

# Determiners of the noun, by number.
DETERMINERS = {"one": "a / one / the", "many": "two / three / four / some / several"}
VERBS = {("one", "now"): "is", ("many", "now"): "are", ("one", "then"): "was", ("many", "then"): "were"}
COLOURS = "red / blue / green / yellow / white / black / brown / grey"

# What may follow the noun, in order, with and without a mood before the noun. No sentence has more than 14 tokens.
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

    nouns: str  # singular and plural
    possessive: str  # singular; the plural is "their"
    company: str  # singular and plural


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
    """How people look (before the noun) and act (at the end)."""

    looks: str
    manners: str


MOODS = {
    "happy": Mood("cheerful / smiling / merry", "with a grin / in high spirits / with great joy"),
    "tired": Mood("tired / sleepy / weary", "with heavy eyes / between long yawns / without much energy"),
    "careful": Mood("careful / patient / quiet", "with great care / in complete silence / with steady hands"),
    "hasty": Mood("hasty / nervous / restless", "in a hurry / without a pause / at full speed"),
}


class Scene(NamedTuple):
    """What a picture of a place can show."""

    activities: str
    places: str
    clothes: str  # singular and plural
    meanwhile: str  # someone of theirs, a verb in present and in past tense


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
    """Return the alternatives of a lexicon entry as words: "a kite / ducks" is [("a", "kite"), ("ducks",)]."""
    return [tuple(part.split()) for part in text.split("/")]


def capitalised(bodies: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Capitalise the first word of each body."""
    return [(first.capitalize(), *rest) for first, *rest in bodies]


def even(bodies: Sequence[Body]) -> Alternatives:
    """Give all bodies the same probability."""
    return [(1 / len(bodies), body) for body in bodies]


@cache
def grammar() -> Grammar:
    """Return the grammar of the captions. A symbol is a tuple of its role and the choices that its words show."""
    rules: dict[Symbol, Alternatives] = {}

    rules[("colour",)] = even(split(COLOURS))
    for number, determiners in DETERMINERS.items():
        rules["determiner", number] = even(split(determiners))
        rules["Determiner", number] = even(capitalised(split(determiners)))

    for mood, (looks, manners) in MOODS.items():
        rules["look", mood] = even(split(looks))
        rules["manner", mood] = even(split(manners))
    # If no mood precedes the noun, any may appear at the end.
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
        """Return everything that may follow the noun."""
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

    # Expand first what comes first in a sentence: its first words then rule out most of the grammar, which makes
    # log_probability fast.
    people: list[tuple[str, str, str | None]] = list(product(PEOPLE, DETERMINERS, (None, *MOODS)))
    for kind, number, tone in people:
        noun = (("look", tone), ("noun", kind, number))
        rules["Person", kind, number, tone] = even([(("Determiner", number), *noun)])
        rules["person", kind, number, tone] = even([(("determiner", number), *noun)])
        rules["after", kind, number, tone] = even(
            [end for scene in SCENES for end in endings("who first", scene, kind, number, tone)]
        )
    for scene in SCENES:
        rules["after", scene] = even(
            [(("person", *who), *end) for who in people for end in endings("where first", scene, *who)]
        )
    rules[("who first",)] = even([(("Person", *who), ("after", *who)) for who in people])
    rules[("where first",)] = even([(("Place", scene), ",", ("after", scene)) for scene in SCENES])
    rules[("caption",)] = [(0.8, (("who first",),)), (0.2, (("where first",),))]
    return Grammar(rules, ("caption",))


class Factors(NamedTuple):
    """What the grammar chose for a caption, beyond single words. Each choice shows in the words.

    Attributes:
        who: the kind of people, a key of ``PEOPLE``.
        number: one or many.
        mood: a key of ``MOODS``; none if no word shows it.
        scene: where, a key of ``SCENES``.
        activity: what they do.
        tense: now or then.
        order: who or where is first.
        shape: the parts of the sentence that follow the noun, such as "does place".
    """

    who: str
    number: str
    mood: str
    scene: str
    activity: str
    tense: str
    order: str
    shape: str


def factors(derivation: Iterable[tuple[Symbol, Body]]) -> Factors:
    """Return the choices of a derivation of a caption."""
    found: dict[str, str] = {}
    for symbol, body in derivation:
        if not isinstance(symbol, tuple):
            continue
        role, *choices = symbol
        if role in ("who first", "where first"):
            found["order"] = role
        elif role in ("Person", "person"):
            found["who"], found["number"], mood = choices
            found["mood"] = mood or "none"
        elif role == "after":
            parts = [str(part[0]) for part in body if isinstance(part, tuple)]
            found["shape"] = " ".join(part for part in parts if part != "person")
        elif role == "does":
            found["scene"], _, found["tense"] = choices
            found["activity"] = " ".join(map(str, body[1:]))
        elif role == "manner":
            found["mood"] = choices[0] or "none"  # without a mood, the next symbol has one
    return Factors(**found)


def draw(count: int, seed: int | Sequence[int]) -> list[tuple[list[str], Factors]]:
    """Draw captions independently, as tokens and factors. A larger count begins with the draws of a smaller one.

    Draws are the same on every platform, as Python guarantees for string seeds. Different seeds, or tuples such as
    (seed, split), give different sentences; n and (n,) are the same seed.
    """
    numbers = seed if isinstance(seed, Sequence) else (seed,)
    rng = random.Random(" ".join(str(int(number)) for number in numbers))
    derivations = (grammar().derive(rng) for _ in range(count))
    return [(grammar().words_of(derivation), factors(derivation)) for derivation in derivations]


def generate(count: int, seed: int | Sequence[int]) -> list[list[str]]:
    """Return the tokens of what ``draw`` draws."""
    return [tokens for tokens, _ in draw(count, seed)]


def log_probability(tokens: Sequence[str]) -> float:
    """Return log p of a caption in nats; -inf if the grammar cannot produce it."""
    return grammar().log_probability(tokens)


def words() -> list[str]:
    """Return every word that a caption may contain, sorted."""
    return grammar().words()


def entropy() -> float:
    """Return the entropy of a caption in nats, which is exact because each caption has one derivation."""
    return grammar().entropy()
