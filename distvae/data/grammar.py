"""Probabilistic context-free grammars of finitely many sentences, with exact probabilities."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from graphlib import TopologicalSorter
from itertools import accumulate, product
from typing import Protocol, TypeVar

Symbol = Hashable
Body = tuple[Symbol, ...]
Alternatives = Sequence[tuple[float, Body]]

Value = TypeVar("Value")
Number = TypeVar("Number", int, float)


class Random(Protocol):
    """A source of uniform draws, such as ``random.Random`` or numpy's ``Generator``."""

    def random(self) -> float: ...


@dataclass(frozen=True, eq=False)
class Grammar:
    """A probabilistic context-free grammar of finitely many sentences.

    Attributes:
        rules: for each symbol, its alternatives as (probability, symbols that replace it). A symbol without rules is a
            word, and must be a string.
        start: the symbol that every sentence derives from.

    Raises:
        ValueError: probabilities are not positive or do not sum to one, a symbol derives itself, or a symbol that is
            not a string (or ``start``) has no rules.
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
                raise ValueError(f"{symbol!r} is not a word and has no rules")

    def sample(self, rng: Random) -> list[str]:
        """Draw one sentence."""
        return self.words_of(self.derive(rng))

    def derive(self, rng: Random) -> list[tuple[Symbol, Body]]:
        """Draw one derivation: every symbol of it, depth first and left to right, with its replacement.

        The replacement of a word is empty.
        """
        found: list[tuple[Symbol, Body]] = []
        ahead = [self.start]
        while ahead:
            symbol = ahead.pop()
            body: Body = ()
            if symbol in self.rules:
                steps, bodies = self._steps[symbol]
                # Rounding may leave the last step below one; draws above it take the last body.
                body = bodies[bisect(steps, rng.random(), hi=len(bodies) - 1)]
                ahead.extend(reversed(body))
            found.append((symbol, body))
        return found

    def words_of(self, derivation: Iterable[tuple[Symbol, Body]]) -> list[str]:
        """Return the sentence of a derivation."""
        return [str(symbol) for symbol, _ in derivation if symbol not in self.rules]

    def log_probability(self, tokens: Sequence[str]) -> float:
        """Return log p of a sentence in nats, summed over all derivations; -inf if it has none."""
        probability = self._inside(tokens, lambda probability: probability)
        return math.log(probability) if probability else -math.inf

    def derivations(self, tokens: Sequence[str]) -> int:
        """Return the number of derivations of a sentence."""
        return self._inside(tokens, lambda _: 1)

    def entropy(self) -> float:
        """Return the entropy of the sentences in nats; an upper bound if a sentence has several derivations."""

        def of_alternatives(alternatives: list[tuple[float, list[float]]]) -> float:
            return sum(p * (sum(parts) - math.log(p)) for p, parts in alternatives)

        return self._fold(lambda _: 0.0, of_alternatives)

    def words(self) -> list[str]:
        """Return every word that a sentence may contain, sorted."""

        def of_alternatives(alternatives: list[tuple[float, list[set[str]]]]) -> set[str]:
            return {word for _, parts in alternatives for words in parts for word in words}

        words: set[str] = self._fold(lambda word: {word}, of_alternatives)
        return sorted(words)

    def lengths(self) -> set[int]:
        """Return every number of tokens that a sentence may have."""

        def of_alternatives(alternatives: list[tuple[float, list[set[int]]]]) -> set[int]:
            return {sum(lengths) for _, parts in alternatives for lengths in product(*parts)}

        return self._fold(lambda _: {1}, of_alternatives)

    def sentences(self) -> Iterator[tuple[list[str], float]]:
        """Yield the tokens and the log probability in nats of every derivation. Use only for small grammars."""

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
                    yield [str(first), *tokens], log_p

        return expand((self.start,))

    @cached_property
    def _parts_first(self) -> list[Symbol]:
        """All symbols and words, each after those that its alternatives contain. A cycle raises ValueError."""
        parts = {s: {part for _, body in alternatives for part in body} for s, alternatives in self.rules.items()}
        return list(TopologicalSorter(parts).static_order())

    @cached_property
    def _steps(self) -> dict[Symbol, tuple[list[float], list[Body]]]:
        """The cumulative probabilities of each symbol's alternatives, and the alternatives."""
        return {
            symbol: (list(accumulate(p for p, _ in alternatives)), [body for _, body in alternatives])
            for symbol, alternatives in self.rules.items()
        }

    def _fold(
        self, of_word: Callable[[str], Value], of_alternatives: Callable[[list[tuple[float, list[Value]]]], Value]
    ) -> Value:
        """Return the value of the start, computing each symbol's value from those of its alternatives' parts."""
        values: dict[Symbol, Value] = {}
        for symbol in self._parts_first:
            if symbol in self.rules:
                parts = [(probability, [values[part] for part in body]) for probability, body in self.rules[symbol]]
                values[symbol] = of_alternatives(parts)
            else:
                values[symbol] = of_word(str(symbol))
        return values[self.start]

    def _inside(self, tokens: Sequence[str], weight: Callable[[float], Number]) -> Number:
        """Return the sum, over all derivations of the sentence, of the product of their rules' weights."""
        one = weight(1.0)

        def find(symbol: Symbol, begin: int) -> dict[int, Number]:
            """Return the weights of the symbol's derivations that begin here, summed by where they end."""
            if symbol not in self.rules:
                return {begin + 1: one} if begin < len(tokens) and tokens[begin] == symbol else {}
            total: dict[int, Number] = {}
            for probability, body in self.rules[symbol]:
                reached = {begin: weight(probability)}
                for part in body:
                    further: dict[int, Number] = {}
                    for middle, before in reached.items():
                        for end, inside in ends(part, middle).items():
                            further[end] = further.get(end, 0) + before * inside
                    reached = further
                    if not reached:
                        break
                for end, inside in reached.items():
                    total[end] = total.get(end, 0) + inside
            return total

        ends: Callable[[Symbol, int], dict[int, Number]] = cache(find)
        return ends(self.start, 0).get(len(tokens), 0)
