"""What a set of sentences is like, generated or real: how varied, how much of it copied, how near to real text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from distvae.evaluation.ngrams import NGrams
from distvae.evaluation.scores import Estimate, mean_estimate, perplexity

# Sentences that are compared with each other: the cost is their square.
SELF_BLEU_SENTENCES = 200

_COPIED = 4  # n of the n-grams that are looked up in train

Ids = Sequence[Sequence[int]]


@dataclass(frozen=True)
class TextStatistics:
    """Statistics of a set of sentences. All but ``length`` depend on how many there are: compare sets of one size.

    Attributes:
        sentences: how many.
        length: tokens per sentence, ``</s>`` included.
        distinct_1, distinct_2: different words and bigrams, divided by all (Li et al., 2016).
        self_bleu: BLEU-4 of a sentence with the others as references, 0 to 1 (Zhu et al., 2018), of the first 200; high
            if the sentences resemble each other. None: there is one sentence.
        copied: share of the sentences that stand in train.
        copied_4grams: share of the 4-grams that stand in train; None: there are none.
        forward_ppl: perplexity per token of these sentences under a trigram model of train: high if they are unlike it.
        reverse_ppl: perplexity of test under a trigram model of these sentences (Zhao et al., 2018): high if they lack
            what real text has.
        mauve: of these sentences and of test, 0 to 1 (see ``evaluation.mauve``); None: not computed.
    """

    sentences: int
    length: Estimate
    distinct_1: float
    distinct_2: float
    self_bleu: Estimate | None
    copied: float
    copied_4grams: float | None
    forward_ppl: Estimate
    reverse_ppl: Estimate
    mauve: float | None = None


class Comparison:
    """Real sentences with which others are compared.

    Args:
        train: ids of ``<s> w₁ … wₙ </s>``, as all sentences here.
        test: held-out sentences.
        vocabulary_size: V.
    """

    def __init__(self, train: Ids, test: Ids, vocabulary_size: int):
        self._test, self._vocabulary_size = test, vocabulary_size
        self._model = NGrams(train, vocabulary_size)
        self._sentences = {tuple(sentence) for sentence in train}
        self._grams = {gram for sentence in train for gram in _grams(sentence, _COPIED)}

    def statistics(self, sentences: Ids) -> TextStatistics:
        """Return the statistics of at least one sentence."""
        tokens = np.array([len(sentence) - 1 for sentence in sentences])
        copied = [tuple(sentence) in self._sentences for sentence in sentences]
        grams = [gram in self._grams for sentence in sentences for gram in _grams(sentence, _COPIED)]
        reverse = NGrams(sentences, self._vocabulary_size)
        return TextStatistics(
            sentences=len(sentences),
            length=mean_estimate(tokens),
            distinct_1=_distinct(sentences, 1),
            distinct_2=_distinct(sentences, 2),
            self_bleu=_self_bleu(sentences[:SELF_BLEU_SENTENCES]),
            copied=sum(copied) / len(copied),
            copied_4grams=sum(grams) / len(grams) if grams else None,
            forward_ppl=ngram_perplexity(self._model, sentences),
            reverse_ppl=ngram_perplexity(reverse, self._test),
        )


def _words(sentence: Sequence[int]) -> list[int]:
    return list(sentence[1:-1])


def _grams(sentence: Sequence[int], n: int) -> list[tuple[int, ...]]:
    words = _words(sentence)
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def _distinct(sentences: Ids, n: int) -> float:
    grams = [gram for sentence in sentences for gram in _grams(sentence, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _self_bleu(sentences: Ids) -> Estimate | None:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu  # late: it takes a second to import

    if len(sentences) < 2:
        return None
    words, smoothing = [_words(sentence) for sentence in sentences], SmoothingFunction().method1
    scores = [
        sentence_bleu(words[:number] + words[number + 1 :], own, smoothing_function=smoothing)
        for number, own in enumerate(words)
    ]
    return mean_estimate(np.array(scores))


def ngram_perplexity(model: NGrams, sentences: Ids) -> Estimate:
    """Return the perplexity of at least one sentence, ``</s>`` included, under n-grams."""
    nats = np.array([model.nats(sentence) for sentence in sentences])
    return perplexity(nats, np.array([len(sentence) - 1 for sentence in sentences]))
