"""An n-gram language model, by which two sets of sentences are compared."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# What every count gives to shorter contexts (Ney et al., 1994).
DISCOUNT = 0.75


@dataclass
class _Context:
    total: int = 0  # counts of the tokens that follow
    kinds: int = 0  # how many different ones do


class NGrams:
    """Interpolated Kneser–Ney (Kneser & Ney, 1995; Chen & Goodman, 1999, section 2.7) with one discount.

    The n-gram that ends at a token counts as often as it occurs; so does a shorter one that begins with ``<s>``. Any
    other shorter one counts the different tokens that precede it. Without a context, a share of the probability goes to
    all tokens alike, so that none has probability 0.

    Args:
        sentences: ids of ``<s> w₁ … wₙ </s>``.
        vocabulary_size: V, ids that may follow another.
        order: n.
    """

    def __init__(self, sentences: Iterable[Sequence[int]], vocabulary_size: int, order: int = 3):
        self.vocabulary_size, self.order = vocabulary_size, order
        by_length = [Counter[tuple[int, ...]]() for _ in range(order + 1)]
        for sentence in sentences:
            tokens = tuple(sentence)
            for end in range(2, len(tokens) + 1):
                gram = tokens[max(0, end - order) : end]
                by_length[len(gram)][gram] += 1
        for longer, counts in zip(by_length[:1:-1], by_length[-2:0:-1], strict=True):
            counts.update(gram[1:] for gram in longer)
        self._counts: dict[tuple[int, ...], int] = {}
        self._contexts: dict[tuple[int, ...], _Context] = {}
        for counts in by_length:
            self._counts.update(counts)
            for gram, count in counts.items():
                context = self._contexts.setdefault(gram[:-1], _Context())
                context.total += count
                context.kinds += 1

    def probability(self, token: int, context: tuple[int, ...]) -> float:
        """Return p(token | context), for a context of at most n − 1 tokens."""
        probability = 1 / self.vocabulary_size
        for start in range(len(context), -1, -1):
            seen = self._contexts.get(context[start:])
            if seen is None:  # nor has a longer one been seen
                break
            count = self._counts.get((*context[start:], token), 0)
            probability = (max(count - DISCOUNT, 0) + DISCOUNT * seen.kinds * probability) / seen.total
        return probability

    def nats(self, sentence: Sequence[int]) -> float:
        """Return −log p of a sentence, ``</s>`` included and ``<s>`` not."""
        tokens = tuple(sentence)
        return -sum(
            math.log(self.probability(tokens[end], tokens[max(0, end + 1 - self.order) : end]))
            for end in range(1, len(tokens))
        )
