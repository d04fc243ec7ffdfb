"""Samples of a model beside real sentences, and a mixture of Gaussians to draw them from."""

from __future__ import annotations

import random
from collections.abc import Callable

from distvae.data.corpus import Corpus
from distvae.data.sentences import Sentences
from distvae.distributed.ranks import OneRank
from distvae.evaluation import mixture
from distvae.evaluation.decoding import Decoding
from distvae.evaluation.encoding import all_posteriors
from distvae.evaluation.generation import decode_ids, prior_draws
from distvae.evaluation.mixture import Mixture
from distvae.evaluation.texts import Comparison, TextStatistics
from distvae.model.vae import TextVAE
from distvae.system.progress_bar import Progress


def fit_mixture(model: TextVAE, train: Sentences, components: int, seed: int) -> Mixture:
    """Fit Gaussians to the aggregate posterior of train; see ``mixture.fit``.

    Raises:
        UserError: there are fewer sentences than Gaussians.
    """
    numbers = mixture.chosen(len(train), seed).tolist()
    some = train if len(numbers) == len(train) else Sentences.of([train[i] for i in numbers])
    with Progress("encode", len(some), shown=True) as progress:
        ranks = OneRank(model.decoder.output.weight.device)
        return mixture.fit(all_posteriors(model, some, ranks, progress.advance), components, seed)


def compare_samples(
    model: TextVAE,
    corpus: Corpus,
    decoding: Decoding,
    count: int | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
    fitted: Mixture | None = None,
) -> dict[str, TextStatistics]:
    """Compare draws from the prior with as many sentences of valid, drawn by the decoding's seed.

    Args:
        count: number of draws; default, and at most, all sentences of valid.
        on_progress: called with the number of sentences decoded since the last call.
        fitted: in place of the prior, for a second set of draws.

    Returns:
        the statistics of ``samples``, of draws from the ``mixture`` if there is one, and of ``valid``. Train and test
        are what all are compared with.
    """
    vocabulary, total = corpus.vocabulary, len(corpus.valid)
    count = min(count or total, total)
    drawn = {"samples": prior_draws(model, count, decoding.seed)}
    if fitted is not None:
        drawn["mixture"] = fitted.draws(count, decoding.seed).to(drawn["samples"])
    sets = {
        name: [
            [vocabulary.bos, *row, vocabulary.eos] for row in decode_ids(model, z, vocabulary, decoding, on_progress)
        ]
        for name, z in drawn.items()
    }
    # Drawn, because a file may be sorted, and neighbours alike.
    sets["valid"] = [corpus.valid[index].tolist() for index in random.Random(decoding.seed).sample(range(total), count)]
    train, test = ([sentence.tolist() for sentence in split[:]] for split in (corpus.train, corpus.test))
    comparison = Comparison(train, test, len(vocabulary))
    return {name: comparison.statistics(sentences) for name, sentences in sets.items()}
