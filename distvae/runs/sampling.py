"""Samples of a model beside real sentences, and a mixture of Gaussians to draw them from."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from distvae.data.corpus import Corpus
from distvae.data.sentences import Sentences
from distvae.distributed.ranks import OneRank
from distvae.evaluation import mixture
from distvae.evaluation.decoding import Decoding
from distvae.evaluation.encoding import all_posteriors
from distvae.evaluation.generation import decode_ids, prior_draws
from distvae.evaluation.mauve import Features, mauve
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
    features: Features | None = None,
) -> dict[str, TextStatistics]:
    """Compare draws from the prior with as many sentences of valid, drawn by the decoding's seed.

    Args:
        count: number of draws; default, and at most, all sentences of valid.
        on_progress: called with the number of sentences decoded since the last call.
        fitted: in place of the prior, for a second set of draws.
        features: by which each set is compared with as many sentences of test, drawn likewise; None: no MAUVE.

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
    sets["valid"] = _drawn(corpus.valid, count, decoding.seed)
    train, test = ([sentence.tolist() for sentence in split] for split in (corpus.train.in_memory(), corpus.test))
    comparison = Comparison(train, test, len(vocabulary))
    found = {name: comparison.statistics(sentences) for name, sentences in sets.items()}
    if features is None:
        return found
    sets["test"] = _drawn(corpus.test, min(count, len(corpus.test)), decoding.seed)
    with Progress("features", sum(map(len, sets.values())), shown=True) as progress:
        read = {
            name: features.of([vocabulary.text(ids[1:-1]) for ids in sentences], progress.advance)
            for name, sentences in sets.items()
        }
    return {name: replace(each, mauve=mauve(read[name], read["test"], decoding.seed)) for name, each in found.items()}


def _drawn(sentences: Sentences, count: int, seed: int) -> list[list[int]]:
    """Draw sentences, because a file may be sorted, and neighbours alike."""
    return [sentences[index].tolist() for index in random.Random(seed).sample(range(len(sentences)), count)]
