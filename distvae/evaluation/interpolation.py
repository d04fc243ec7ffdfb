"""How straight a path the sentences on a line in latent space take.

Interpolation smoothness is that of Zhang et al., *Improving semantic control in discrete latent spaces with transformer
quantized variational autoencoders*, 2024, with two differences. The distance is the edit distance of words instead of
the word mover's distance, which needs word vectors. The ends are decoded, as in LangSpace (Carvalho et al., 2025), and
not the sentences that were encoded, so that smoothness is at most 1.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from distvae.data.corpus import Corpus
from distvae.evaluation.decoding import Decoding
from distvae.evaluation.encoding import encode
from distvae.evaluation.generation import decode_ids, interpolation
from distvae.evaluation.ngrams import NGrams
from distvae.evaluation.scores import Estimate, mean_estimate, perplexity
from distvae.evaluation.texts import Ids
from distvae.model.vae import TextVAE
from distvae.system.errors import UserError

# Pairs of sentences, unless another number is asked for.
PAIRS = 500


@dataclass(frozen=True)
class Paths:
    """What the sentences on lines between two z are like. Distances are edit distances, in words.

    Attributes:
        pairs: lines.
        points: sentences on a line, both ends included.
        same_ends: share of the lines whose ends are the same sentence. The next three are of the others; None: there
            are none.
        smoothness: distance of the ends, divided by the length of the path, the sum of the distances from each sentence
            to the next; 0 to 1. 1: no detour.
        shuffled: the same with the inner sentences in a random order.
        largest_step: the largest distance from a sentence to the next, divided by the length of the path. 1: one jump;
            1 / (points − 1): equal steps.
        different: different sentences on a line, 1 to ``points``.
        distance: of the ends.
        ends_ppl, inner_ppl: perplexity of the ends, and of the sentences between them, under n-grams.
    """

    pairs: int
    points: int
    same_ends: Estimate
    smoothness: Estimate | None
    shuffled: Estimate | None
    largest_step: Estimate | None
    different: Estimate
    distance: Estimate
    ends_ppl: Estimate
    inner_ppl: Estimate

    @classmethod
    def of(cls, paths: Sequence[Ids], ngrams: NGrams, seed: int) -> Paths:
        """Measure at least one path.

        Args:
            paths: ids of ``<s> w₁ … wₙ </s>``, at least three sentences in each, as many in all.
            ngrams: of real text.
            seed: of the random orders.
        """
        rng = random.Random(seed)
        ends = [edit_distance(path[0], path[-1]) for path in paths]
        apart = [(path, end) for path, end in zip(paths, ends, strict=True) if end]
        steps = [_steps(path) for path, _ in apart]
        others = [_steps([path[0], *rng.sample(path[1:-1], len(path) - 2), path[-1]]) for path, _ in apart]
        return cls(
            pairs=len(paths),
            points=len(paths[0]),
            same_ends=mean_estimate(np.array([end == 0 for end in ends], dtype=float)),
            smoothness=_mean(end / sum(row) for (_, end), row in zip(apart, steps, strict=True)),
            shuffled=_mean(end / sum(row) for (_, end), row in zip(apart, others, strict=True)),
            largest_step=_mean(max(row) / sum(row) for row in steps),
            different=mean_estimate(np.array([len({*map(tuple, path)}) for path in paths])),
            distance=mean_estimate(np.array(ends)),
            ends_ppl=_perplexity(ngrams, [[path[0], path[-1]] for path in paths]),
            inner_ppl=_perplexity(ngrams, [path[1:-1] for path in paths]),
        )


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the fewest tokens to insert, delete or replace that make one sentence the other (Levenshtein, 1966)."""
    row = list(range(len(other) + 1))
    for deleted, token in enumerate(one, 1):
        above, row = row, [deleted]
        for place, found in enumerate(other):
            row.append(min(above[place] + (token != found), above[place + 1] + 1, row[place] + 1))
    return row[-1]


def _steps(path: Ids) -> list[int]:
    return [edit_distance(one, other) for one, other in pairwise(path)]


def _mean(values: Iterable[float]) -> Estimate | None:
    found = list(values)
    return mean_estimate(np.array(found)) if found else None


def _perplexity(ngrams: NGrams, groups: Sequence[Ids]) -> Estimate:
    """Return the perplexity of all sentences. Its error is over groups, whose sentences resemble each other."""
    nats = np.array([sum(map(ngrams.nats, group)) for group in groups])
    return perplexity(nats, np.array([sum(len(sentence) - 1 for sentence in group) for group in groups]))


def draw_pairs(sentences: int, pairs: int, seed: int) -> list[int]:
    """Draw pairs of sentences: numbers of start, end, start, end … A sentence is in one pair, so that pairs are
    independent, and more pairs begin with fewer.

    Args:
        sentences: how many there are.
        pairs: at most half as many are drawn.

    Raises:
        UserError: there are fewer than two sentences.
    """
    if sentences < 2:
        raise UserError(f"the test split has {sentences} of the two sentences that an interpolation needs")
    numbers = list(range(sentences))
    random.Random(seed).shuffle(numbers)
    return numbers[: 2 * min(pairs, sentences // 2)]


def interpolate(
    model: TextVAE,
    corpus: Corpus,
    numbers: Sequence[int],
    points: int,
    decoding: Decoding,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Paths:
    """Decode lines between the posterior means of test sentences, and measure them beside trigrams of train.

    Args:
        numbers: of sentences of test, from ``draw_pairs``.
        points: on a line, both ends included, at least 3.
        on_progress: called with the number of sentences decoded since the last call.
    """
    vocabulary = corpus.vocabulary
    means = encode(model, [corpus.test[number].tolist() for number in numbers]).mean
    z = torch.cat([interpolation(start, end, points) for start, end in zip(means[::2], means[1::2], strict=True)])
    decoded = decode_ids(model, z, vocabulary, decoding, on_progress)
    sentences = [[vocabulary.bos, *row, vocabulary.eos] for row in decoded]
    paths = [sentences[first : first + points] for first in range(0, len(sentences), points)]
    ngrams = NGrams([sentence.tolist() for sentence in corpus.train.in_memory()], len(vocabulary))
    return Paths.of(paths, ngrams, decoding.seed)
