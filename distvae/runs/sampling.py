"""Samples of a model beside real sentences."""

from __future__ import annotations

import random
from collections.abc import Callable

from distvae.data.corpus import Corpus
from distvae.evaluation.decoding import Decoding
from distvae.evaluation.generation import decode_ids, prior_draws
from distvae.evaluation.texts import Comparison, TextStatistics
from distvae.model.vae import TextVAE


def compare_samples(
    model: TextVAE,
    corpus: Corpus,
    decoding: Decoding,
    count: int | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> dict[str, TextStatistics]:
    """Compare draws from the prior with as many sentences of valid, drawn by the decoding's seed.

    Args:
        count: number of draws; default, and at most, all sentences of valid.
        on_progress: called with the number of sentences decoded since the last call.

    Returns:
        the statistics of ``samples`` and of ``valid``. Train and test are what both are compared with.
    """
    vocabulary, total = corpus.vocabulary, len(corpus.valid)
    count = min(count or total, total)
    z = prior_draws(model, count, decoding.seed)
    samples = [
        [vocabulary.bos, *row, vocabulary.eos] for row in decode_ids(model, z, vocabulary, decoding, on_progress)
    ]
    # Drawn, because a file may be sorted, and neighbours alike.
    real = [corpus.valid[index].tolist() for index in random.Random(decoding.seed).sample(range(total), count)]
    train, test = ([sentence.tolist() for sentence in split[:]] for split in (corpus.train, corpus.test))
    comparison = Comparison(train, test, len(vocabulary))
    return {"samples": comparison.statistics(samples), "valid": comparison.statistics(real)}
