"""The corpora of the survival grid that need no files: the captions, and two that are generated."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from distvae.config.schema import CAPTIONS

# Sentences of each split; of larger data, a sample.
SPLITS = {"train": 9000, "valid": 500, "test": 1000}


def generated(folder: Path) -> dict[str, str]:
    """Write the generated corpora, unless they exist, and return ``data.path`` of every corpus by its name."""
    for name, draw in _DRAWS.items():
        for split, size in SPLITS.items():
            file = folder / name / f"{split}.txt"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                sentences = draw(random.Random(f"{name} {split}"))
                file.write_text("".join(f"{next(sentences)}\n" for _ in range(size)), encoding="utf-8")
    return {CAPTIONS: CAPTIONS} | {name: str(folder / name) for name in _DRAWS}


def _words(count: int, syllables: int, seed: str) -> list[str]:
    """Return different words."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(syllables))] = None
    return list(found)


def _short(rng: random.Random) -> Iterator[str]:
    """Draw sentences of 4 to 6 tokens from a vocabulary of 2,000: each of 20 topics has its own nouns and verbs."""
    words, topics = _words(2000, 3, "short"), 20
    size = len(words) // topics // 2
    frequencies = [1 / (rank + 3) for rank in range(size)]
    while True:
        start = 2 * size * rng.randrange(topics)
        nouns, verbs = words[start : start + size], words[start + size : start + 2 * size]
        one, other, third = rng.choices(nouns, frequencies, k=3)
        verb = rng.choices(verbs, frequencies)[0]
        yield rng.choice(
            [
                f"the {one} {verb} a {other} .",
                f"{one} {verb} {other} and {third} .",
                f"does the {one} {verb} ?",
                f"why {verb} the {one} ?",
                f"no {one} {verb} .",
            ]
        )


def _long(rng: random.Random) -> Iterator[str]:
    """Draw sentences of 20 to 34 words from a vocabulary of 60: chains whose moves depend on two of 8 moods in turn."""
    words, moods = _words(60, 2, "long"), 8
    fixed = random.Random("moves")
    moves = [[[fixed.randrange(len(words)) for _ in range(4)] for _ in words] for _ in range(moods)]
    while True:
        pair, word = [rng.randrange(moods), rng.randrange(moods)], rng.randrange(len(words))
        chain = []
        for place in range(rng.randint(20, 34)):
            chain.append(words[word])
            # One move in three is the same in every mood.
            word = rng.choice(moves[pair[place % 2] if rng.random() < 2 / 3 else 0][word])
        yield " ".join(chain)


_DRAWS: dict[str, Callable[[random.Random], Iterator[str]]] = {"short": _short, "long": _long}
