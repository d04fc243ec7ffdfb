"""Linear probes: which labels can be read from z, beside chance and a bag of words (Alain & Bengio, 2017).

A probe is a multinomial logistic regression with an L2 penalty, whose strength is chosen by cross-validation.
scikit-learn, which fits it, is imported when it is first needed.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from distvae.evaluation.scores import Estimate, mean_estimate
from distvae.model.posterior import Posterior
from distvae.system.errors import UserError

if TYPE_CHECKING:
    from scipy.sparse import csr_array
    from sklearn.linear_model import LogisticRegression

# Inverse strengths of the penalty to choose from, relative to the sum of the losses; folds, and the most sentences.
STRENGTHS, FOLDS, VALIDATED = (0.01, 0.1, 1.0, 10.0, 100.0), 3, 3000

# Most steps of Newton's method, which needs fewer unless classes are separable.
STEPS = 50

# Times that a given number of labelled sentences is drawn.
DRAWS = 5

# z: learn from a draw of z for each sentence, and read posterior means, as the decoder does in training and in
# reconstructions. mean: learn from posterior means. words: from a bag of words.
Kind = Literal["z", "mean", "words"]


@dataclass(frozen=True)
class Reading:
    """What a probe sees of sentences.

    Attributes:
        train: what it learns from, [n, d].
        test: what it predicts from, [k, d].
        standardised: whether a probe divides each dimension by its standard deviation over train.
    """

    kind: Kind
    train: np.ndarray | csr_array
    test: np.ndarray | csr_array
    standardised: bool = True


@dataclass(frozen=True)
class Codes:
    """A column of labels as numbers.

    Attributes:
        classes: the labels that occur in train, sorted.
        train: [n], −1 where a sentence has no label.
        test: [k], −1 likewise, and len(classes) for a label that train lacks, which no probe can predict.
    """

    classes: tuple[str, ...]
    train: np.ndarray
    test: np.ndarray

    @classmethod
    def of(cls, train: Sequence[str | None], test: Sequence[str | None]) -> Codes:
        """Number the labels of a column."""
        classes = tuple(sorted({label for label in train if label is not None}))
        numbers: dict[str | None, int] = {label: number for number, label in enumerate(classes)} | {None: -1}
        found = (np.array([numbers.get(label, len(classes)) for label in part], dtype=int) for part in (train, test))
        return cls(classes, *found)

    @property
    def labelled(self) -> np.ndarray:
        """The rows of train that have a label."""
        return np.flatnonzero(self.train >= 0)

    @property
    def tested(self) -> np.ndarray:
        """The rows of test that have a label."""
        return np.flatnonzero(self.test >= 0)


def check_installed(what: str) -> None:
    """Check that scikit-learn is installed.

    Args:
        what: needs it.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("sklearn") is None:
        raise UserError(f"{what} needs scikit-learn: pip install 'distvae[probe]'")


def readings(train: Posterior, test: Posterior, seed: int) -> tuple[Reading, Reading]:
    """Return what a probe sees of posteriors, as ``z`` and as ``mean``.

    Args:
        train: [n, m] each.
        test: [k, m] each.
        seed: of the draws of z.
    """
    means, read = train.mean.double().numpy(), test.mean.double().numpy()
    noise = np.random.default_rng(seed).standard_normal(means.shape)
    drawn = means + np.exp(train.log_variance.double().numpy() / 2) * noise
    return Reading("z", drawn, read), Reading("mean", means, read)


def bag_of_words(train: Sequence[np.ndarray], test: Sequence[np.ndarray], vocabulary_size: int) -> Reading:
    """Return how often each token occurs in each sentence.

    Args:
        train: token ids of n sentences, ``<s>`` and ``</s>`` included, which are not counted.
        test: those of k sentences.
    """
    from scipy.sparse import csr_array

    def counts(sentences: Sequence[np.ndarray]) -> csr_array:
        words = [np.asarray(ids)[1:-1] for ids in sentences]
        # k-means wants 32 bits.
        columns = np.concatenate([np.zeros(0, dtype=np.int32), *words]).astype(np.int32)
        rows = np.repeat(np.arange(len(words), dtype=np.int32), [len(ids) for ids in words])
        found = csr_array((np.ones(len(columns)), (rows, columns)), shape=(len(words), vocabulary_size))
        found.sum_duplicates()
        return found

    return Reading("words", counts(train), counts(test), standardised=False)


def chance(codes: Codes) -> Estimate:
    """Return the accuracy on test of naming the most frequent class of train."""
    return mean_estimate(codes.test[codes.tested] == np.bincount(codes.train[codes.labelled]).argmax())


def probe(reading: Reading, codes: Codes, count: int, seed: int) -> Estimate:
    """Return the accuracy of probes on test, with its standard error.

    Args:
        count: labelled sentences of train to learn from. If there are more, that many are drawn ``DRAWS`` times; the
            accuracy is the mean, and its error includes that over the draws. The draws are the same for every reading.
        seed: of these draws and of the folds.

    Raises:
        ValueError: train or test has no labels.
    """
    rows, tested = codes.labelled, codes.tested
    if not len(rows) or not len(tested) or count < 1:
        raise ValueError(f"a probe from {count} of {len(rows)} labelled sentences to {len(tested)}")
    every = count >= len(rows)
    drawn = [
        rows if every else np.random.default_rng((seed, count, i)).choice(rows, count, replace=False)
        for i in range(1 if every else DRAWS)
    ]
    train, test = _scaled(reading)
    strength = _strength(train, codes.train, drawn[0], seed)
    hits = np.empty((len(drawn), len(tested)))
    for i, chosen in enumerate(drawn):
        hits[i] = _predict(train[chosen], codes.train[chosen], test[tested], strength) == codes.test[tested]
    return over_draws(hits)


def over_draws(hits: np.ndarray) -> Estimate:
    """Return the mean of [draws, k]. The squares of the standard errors over draws and over sentences add up."""
    over_sentences = mean_estimate(hits.mean(axis=0))
    if len(hits) < 2 or over_sentences.standard_error is None:
        return over_sentences
    between = mean_estimate(hits.mean(axis=1)).standard_error or 0.0
    return Estimate(over_sentences.mean, math.hypot(over_sentences.standard_error, between))


def _scaled(reading: Reading) -> tuple[np.ndarray, np.ndarray]:
    """Return train and test, standardised by train if the reading is."""
    if not reading.standardised:
        return reading.train, reading.test
    centre, spread = reading.train.mean(axis=0), reading.train.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    return (reading.train - centre) / spread, (reading.test - centre) / spread


def _strength(train: np.ndarray, labels: np.ndarray, rows: np.ndarray, seed: int) -> float:
    """Return the inverse strength of the penalty under which held-out labels are most likely.

    From the strongest penalty on, until a weaker one is worse. A held-out label that a fold's classes lack is left out,
    because it is as unlikely under every strength.
    """
    rows = np.random.default_rng((seed, len(rows))).permutation(rows)[:VALIDATED]
    folds = []
    for fold in range(FOLDS):
        kept, held = rows[np.arange(len(rows)) % FOLDS != fold], rows[fold::FOLDS]
        known = held[np.isin(labels[held], labels[kept])]
        if len(known) and len(np.unique(labels[kept])) > 1:
            folds.append((_regression(warm_start=True), kept, known))
    best, most = 1.0, -math.inf
    for strength in STRENGTHS if folds else ():
        total = 0.0
        for model, kept, known in folds:
            shares = _fit(model.set_params(C=strength), train[kept], labels[kept]).predict_proba(train[known])
            own = shares[np.arange(len(known)), np.searchsorted(model.classes_, labels[known])]
            total += float(np.log(np.maximum(own, 1e-30)).sum())
        if total < most:
            break
        best, most = strength, total
    return best


def _predict(train: np.ndarray, labels: np.ndarray, test: np.ndarray, strength: float) -> np.ndarray:
    """Learn from train [n, d] with labels [n], and return those of test: [k]."""
    if len(np.unique(labels)) == 1:
        return np.full(test.shape[0], labels[0])
    found: np.ndarray = _fit(_regression(C=strength), train, labels).predict(test)
    return found


def _regression(**settings: float | bool) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(solver="newton-cg", tol=1e-3, max_iter=STEPS, **settings)


def _fit(model: LogisticRegression, train: np.ndarray, labels: np.ndarray) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # not converged, or hardly fewer classes than sentences
        return model.fit(train, labels)
