"""How much of a sentence comes back, and which part of it: latents are known to keep the first words and the length
(Bosc & Vincent, 2020).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from distvae.data.sentences import Sentences
from distvae.data.vocabulary import Vocabulary
from distvae.evaluation.decoding import Decoding
from distvae.evaluation.encoding import encode
from distvae.evaluation.generation import decode_ids
from distvae.evaluation.scores import Estimate, mean_estimate
from distvae.evaluation.texts import Ids
from distvae.model.vae import TextVAE

# Parts of a sentence, of equal numbers of words.
PARTS = ("first", "middle", "last")


@dataclass(frozen=True)
class Reconstruction:
    """What reconstructions have in common with their sentences.

    Attributes:
        sentences: how many.
        exact: share that is the sentence.
        length: share that has its length.
        tokens: share of its tokens that are in their places, ``</s>`` included, by sentence.
        parts: the same of the ``first``, ``middle`` and ``last`` third of the words, without ``</s>``. Word i = 0, 1, …
            of n is in third ⌊3i/n⌋, so one word is a first third alone, and two are a first and a middle one. None: no
            sentence has this third.
        positions: the same by place: the first tokens, the second ones and so on, of the sentences that have one.
        bleu: BLEU-4 of all (Papineni et al., 2002), 0 to 1, without smoothing.
    """

    sentences: int
    exact: Estimate
    length: Estimate
    tokens: Estimate
    parts: dict[str, Estimate | None]
    positions: tuple[Estimate, ...]
    bleu: float

    @classmethod
    def of(cls, originals: Ids, rebuilt: Ids) -> Reconstruction:
        """Compare at least one sentence with its reconstruction.

        Args:
            originals: ids of ``w₁ … wₙ </s>``.
            rebuilt: likewise, in the same order.
        """
        hits = [
            [one == other for one, other in zip_longest(original, copy[: len(original)])]
            for original, copy in zip(originals, rebuilt, strict=True)
        ]
        longest = max(map(len, hits))
        return cls(
            sentences=len(hits),
            exact=mean_estimate(
                np.array([list(a) == list(b) for a, b in zip(originals, rebuilt, strict=True)], dtype=float)
            ),
            length=mean_estimate(
                np.array([len(a) == len(b) for a, b in zip(originals, rebuilt, strict=True)], dtype=float)
            ),
            tokens=mean_estimate(np.array([np.mean(row) for row in hits])),
            parts={name: _share_of_part(hits, number) for number, name in enumerate(PARTS)},
            positions=tuple(
                mean_estimate(np.array([row[place] for row in hits if place < len(row)], dtype=float))
                for place in range(longest)
            ),
            bleu=_bleu(originals, rebuilt),
        )


def _share_of_part(hits: Sequence[Sequence[bool]], number: int) -> Estimate | None:
    """Return the share of hits among the words of a part, by sentence, of the sentences that have it."""
    words = [row[:-1] for row in hits]
    rows = [[hit for i, hit in enumerate(row) if len(PARTS) * i // len(row) == number] for row in words]
    shares = [np.mean(row) for row in rows if row]
    return mean_estimate(np.array(shares)) if shares else None


def _bleu(originals: Ids, rebuilt: Ids) -> float:
    """Return the BLEU-4 of all sentences together; 0 if no 4-gram comes back. ``</s>`` does not count."""
    log_precision = 0.0
    for n in range(1, 5):
        matches = total = 0
        for original, copy in zip(originals, rebuilt, strict=True):
            expected, found = (Counter(tuple(ids[i : i + n]) for i in range(len(ids) - n)) for ids in (original, copy))
            matches += (expected & found).total()
            total += found.total()
        if not matches:
            return 0.0
        log_precision += math.log(matches / total) / 4
    lengths = [sum(len(ids) - 1 for ids in sentences) for sentences in (originals, rebuilt)]
    return math.exp(log_precision + min(0.0, 1 - lengths[0] / lengths[1]))


def reconstruct(
    model: TextVAE,
    sentences: Sentences,
    vocabulary: Vocabulary,
    decoding: Decoding,
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Reconstruction]:
    """Decode the posterior mean of each sentence, and compare.

    Args:
        on_progress: called with the number of sentences decoded since the last call.

    Returns:
        ``own``, and by comparison ``next``: each sentence beside the reconstruction of the next one (of the last: of
        the first), which shows what sentences have in common anyway.
    """
    ids = [row.tolist() for row in sentences[:]]
    decoded = decode_ids(model, encode(model, ids).mean, vocabulary, decoding, on_progress)
    rebuilt = [[*row, vocabulary.eos] for row in decoded]
    originals = [row[1:] for row in ids]
    return {
        "own": Reconstruction.of(originals, rebuilt),
        "next": Reconstruction.of(originals, rebuilt[1:] + rebuilt[:1]),
    }
