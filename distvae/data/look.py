"""A look at the sentences before hours are spent on them: what they are, and what will hurt."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from datasets import Dataset

from distvae.config.schema import CAPTIONS, DataConfig
from distvae.data import corpus, preparation, sources
from distvae.data.corpus import Corpus
from distvae.data.preparation import sentences_of
from distvae.data.readers.columns import TEXT_COLUMN
from distvae.data.sentences import Sentences, Shards
from distvae.data.splits import SPLITS
from distvae.data.vocabulary import Vocabulary
from distvae.tokenization import BUILT_IN

EXAMPLES = 5

# A longest sentence of so many times the median length, and of so many tokens, is worth a warning.
OUTLIER, OUTLIER_TOKENS = 20, 100
# Shares of sentences that are worth a warning.
SHARED, REPEATED, LABELLED = 0.001, 0.1, 0.2


@dataclass(frozen=True)
class SplitLook:
    """Counts of a split. Lengths are in tokens, without ``<s>`` and ``</s>``."""

    sentences: int
    tokens: int
    median: int
    longest: int
    unknown: float | None  # share of tokens outside the vocabulary; None: the vocabulary is closed


@dataclass(frozen=True)
class Look:
    """What the sentences of a config are.

    Attributes:
        lengths: of train: the first and last length of each bar of a histogram, and its sentences.
        labels: by column, the sentences of train with each label, the most frequent first.
        examples: sentences of train, and their tokens as the model sees them.
        notes: how files were read, and what was left out.
        warnings: what will hurt, and what to do.
    """

    path: str
    fingerprint: str
    tokenizer: str
    unit: str
    vocabulary_size: int
    splits: dict[str, SplitLook]
    lengths: list[tuple[int, int, int]]
    labels: dict[str, list[tuple[str, int]]]
    examples: list[tuple[str, str]]
    notes: list[str]
    warnings: list[str]


def look(data: DataConfig, progress: bool) -> Look:
    """Prepare the corpus unless it exists, and look at its sentences.

    Args:
        progress: show progress bars.

    Raises:
        UserError: as ``corpus.prepare``.
    """
    if sources.is_hub(data):
        data = sources.pinned(data)
    prepared = corpus.load(corpus.prepare(data, progress))
    train, vocabulary = prepared.train.in_memory(), prepared.vocabulary
    splits = {split: _split(prepared, split, train) for split in SPLITS}
    warnings = [note.removeprefix("WARNING: ") for note in prepared.notes if note.startswith("WARNING: ")]
    warnings += _long(splits)
    notes = [note for note in prepared.notes if not note.startswith("WARNING: ")]
    with tempfile.TemporaryDirectory() as work, corpus.quiet_datasets(progress):
        texts = None
        if isinstance(prepared.train, Shards):
            notes.append("train: is in shards, so it is not searched for repetitions; data.distinct=true drops them")
        else:
            texts = _texts(data, Path(work))
            if data.path != CAPTIONS:  # which are independent draws, and whose words show their labels by design
                warnings += [*_given_away(texts["train"], prepared), *_repeated(texts, data)]
        drawn = np.sort(np.random.default_rng(0).permutation(len(train))[:EXAMPLES]).tolist()
        return Look(
            path=data.path,
            fingerprint=prepared.fingerprint,
            tokenizer=vocabulary.tokenizer,
            unit=vocabulary.splitter.unit,
            vocabulary_size=len(vocabulary),
            splits=splits,
            lengths=_histogram(train.lengths - 2),
            labels=_labels(prepared),
            examples=[(_text(texts, i, train, vocabulary), " ".join(vocabulary.decode(train[i]))) for i in drawn],
            notes=notes,
            warnings=warnings,
        )


def _texts(data: DataConfig, work: Path) -> dict[str, Dataset]:
    """Return each split's sentences, as a column ``text``."""
    if data.path != CAPTIONS:
        return preparation.choose(data, sources.load(data, sources.find_files(data), work)).texts
    join = BUILT_IN["words"].join
    drawn = preparation.drawn_captions(data)
    return {split: Dataset.from_dict({TEXT_COLUMN: [join(words) for words, _ in drawn[split]]}) for split in SPLITS}


def _text(texts: dict[str, Dataset] | None, number: int, train: Sentences, vocabulary: Vocabulary) -> str:
    """Return a sentence of train; without its text, unknown words are shown as tokens."""
    if texts is None:
        return vocabulary.text(train[number])
    return str(texts["train"][number][TEXT_COLUMN]).strip()


def _split(prepared: Corpus, split: str, train: Sentences) -> SplitLook:
    sentences: Sentences | Shards = getattr(prepared, split)
    opened = train if isinstance(sentences, Shards) else sentences
    return SplitLook(
        sentences=len(sentences),
        tokens=sentences.tokens - 2 * len(sentences),
        median=int(np.median(opened.lengths - 2)),
        longest=sentences.longest - 2,
        unknown=prepared.unknown[split],
    )


def _histogram(lengths: np.ndarray, bars: int = 12) -> list[tuple[int, int, int]]:
    """Return bars of equal width from the shortest to the 99th percentile, and one for all longer sentences."""
    first, last = int(lengths.min()), int(np.percentile(lengths, 99))
    width = -(-(last - first + 1) // bars)
    edges = list(range(first, last + width + 1, width))
    found = [(low, high - 1, int(((lengths >= low) & (lengths < high)).sum())) for low, high in pairwise(edges)]
    longer = int((lengths >= edges[-1]).sum())
    return [*found, (edges[-1], int(lengths.max()), longer)] if longer else found


def _labels(prepared: Corpus) -> dict[str, list[tuple[str, int]]]:
    train = prepared.labels.get("train")
    if train is None:
        return {}
    return {name: Counter(filter(None, train[name])).most_common() for name in train.column_names}


def _long(splits: dict[str, SplitLook]) -> Iterator[str]:
    for split, found in splits.items():
        if found.longest > max(OUTLIER * found.median, OUTLIER_TOKENS):
            yield (
                f"{split}: the longest sentence has {found.longest:,} tokens, and the median {found.median:,}: its"
                " batch needs as much more memory and time; leave such sentences out by data.max_words"
            )


def _repeated(texts: dict[str, Dataset], data: DataConfig) -> Iterator[str]:
    """Warn of sentences that are in train more than once, or in another split, too."""
    train = set(sentences_of(texts["train"]))
    share = 1 - len(train) / len(texts["train"])
    if share > REPEATED and not data.distinct:
        yield f"train: {share:.1%} of the sentences are repetitions; data.distinct=true keeps each once"
    for split in ("valid", "test"):
        share = sum(text in train for text in sentences_of(texts[split])) / len(texts[split])
        if share > SHARED:
            yield (
                f"{split}: {share:.1%} of the sentences are in train, too, so scores are too good;"
                " data.disjoint=true drops them from train"
            )


def _given_away(train: Dataset, prepared: Corpus) -> Iterator[str]:
    """Warn of labels that are in the text."""
    labels = prepared.labels.get("train")
    if labels is None:
        return
    for name in labels.column_names:
        pairs = [
            (label, text) for label, text in zip(labels[name], sentences_of(train), strict=True) if label is not None
        ]
        found = sum(f" {label.replace('_', ' ').lower()} " in f" {text.lower()} " for label, text in pairs)
        if pairs and found / len(pairs) > LABELLED:
            yield (
                f"data.label={name}: {found / len(pairs):.0%} of the sentences contain their own label as a word: what"
                " a probe reads from z may be the word alone"
            )
