"""Choose the sentences of each split, tokenise them, build the vocabulary, and encode."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.compute as pc

from distvae.config.schema import CAPTIONS, DataConfig
from distvae.data import captions, splits
from distvae.data.encoding import tokenise
from distvae.data.readers.columns import TEXT_COLUMN, Texts
from distvae.data.splits import SPLITS, WHOLE_FILE
from distvae.data.vocabulary import MANY_UNKNOWN, Vocabulary
from distvae.system.errors import UserError
from distvae.system.plural import counted
from distvae.tokenization import BUILT_IN, OPTIONS
from distvae.tokenization.base import Tokenizer, WordLevel
from distvae.tokenization.pieces import PieceTokenizer

if TYPE_CHECKING:  # late, see `data.corpus`
    from datasets import Dataset

# Share of a single file, and maximum number of sentences, for each of valid and test unless sizes are configured.
HELD_OUT_SHARE, HELD_OUT_LIMIT = 0.1, 6_000

CAPTION_COUNTS = {"train": 40_000, "valid": 4_000, "test": 4_000}

# White space and invisible characters: controls, formats, joiners, selectors, fillers.
_INVISIBLE = re.compile(
    r"[\s\x00-\x1f\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202f\u205f-\u206f"
    r"\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]*"
)


def caption_counts(data: DataConfig) -> dict[str, int]:
    """Return how many captions each split draws."""
    return {split: size_of(data, split) or CAPTION_COUNTS[split] for split in SPLITS}


@dataclass(frozen=True)
class Tokens:
    """The tokens of a source.

    Attributes:
        words: each split's sentences, as a column ``words`` of tokens and one of their ``characters``.
        tokenizer: what split them.
        notes: how files were read, and what was left out.
        labels: each split's columns of labels; empty without labels.
    """

    words: dict[str, Dataset]
    tokenizer: Tokenizer
    notes: list[str]
    labels: dict[str, Dataset] = field(default_factory=dict)


@dataclass(frozen=True)
class Chosen:
    """The sentences of a source that are used.

    Attributes:
        texts: each split's sentences, as a column ``text``.
        notes: how files were read, and what was left out.
        labels: each split's columns of labels; empty without labels.
    """

    texts: dict[str, Dataset]
    notes: list[str]
    labels: dict[str, Dataset]


def tokens_of_captions(data: DataConfig) -> Tokens:
    """Draw the captions of all splits."""
    from datasets import Dataset

    drawn = drawn_captions(data)
    words = {split: Dataset.from_dict({"words": [tokens for tokens, _ in pairs]}) for split, pairs in drawn.items()}
    labels = {split: _factor_columns([found for _, found in pairs]) for split, pairs in drawn.items()}
    return Tokens(words, BUILT_IN["words"], [], labels)


def tokens_of(data: DataConfig, texts: dict[str, Texts], work: Path) -> Tokens:
    """Choose the sentences of all splits and tokenise them.

    Args:
        data: which sentences.
        texts: by split, or one ``WHOLE_FILE``; they may have more columns of labels than ``data`` names, which have no
            part in how splits are cut.
        work: folder for temporary Arrow files.

    Raises:
        UserError: a source is empty, or too small to be split, or the tokenizer cannot be trained or read.
    """
    chosen = choose(data, texts)
    tokenizer = data.tokenizer.fit(sentences_of(chosen.texts["train"]))
    words = {split: tokenise(text, split, tokenizer, data.workers, work) for split, text in chosen.texts.items()}
    notes = [*chosen.notes]
    for split, rows in words.items():
        notes += note_on_empty(split, empty_of(rows), len(rows), data)
    return Tokens(words, tokenizer, notes, chosen.labels)


def empty_of(words: Dataset) -> int:
    """Return the number of sentences without any token."""
    return int(pc.sum(pc.equal(pc.list_value_length(words.data.column("words")), 0)).as_py())


def note_on_empty(split: str, empty: int, sentences: int, data: DataConfig) -> list[str]:
    """Return a note if the tokenizer keeps nothing of some sentences.

    Raises:
        UserError: it keeps nothing of the split.
    """
    if empty == sentences:
        raise UserError(f"data.tokenizer={data.tokenizer.name}: knows nothing of {split}; use another tokenizer")
    named = f"{split}: {counted(empty, 'sentence')} of which data.tokenizer={data.tokenizer.name} knows nothing"
    return [named] if empty else []


def drawn_captions(data: DataConfig) -> dict[str, list[tuple[list[str], captions.Factors]]]:
    """Return the tokens and the factors of the captions of each split."""
    counts = caption_counts(data)
    return {split: captions.draw(counts[split], (data.seed, i)) for i, split in enumerate(SPLITS)}


def _factor_columns(factors: list[captions.Factors]) -> Dataset:
    """Return a column of labels for each factor."""
    from datasets import Dataset

    return Dataset.from_dict({name: [getattr(found, name) for found in factors] for name in captions.Factors._fields})


def choose(data: DataConfig, texts: dict[str, Texts]) -> Chosen:
    """Choose the sentences of all splits of a source.

    Args: those of ``tokens_of``.

    Raises:
        UserError: a source is empty, or too small to be split.
    """
    texts, rows, notes = dict(texts), {}, []
    for name, source in texts.items():
        rows[name], noted = kept_of(name, source, data)
        notes += noted
    notes += _cut_missing(rows, texts, data)
    notes += disjoint(rows, texts, data)
    chosen, labels = {}, {}
    for split in SPLITS:
        rows[split], noted = sample(split, rows[split], data)
        notes += noted
        chosen[split] = texts[split].rows.select(rows[split])
        found = texts[split].labels
        if found is not None:
            labels[split] = found.select(rows[split])
            for name in found.column_names:
                missing = int(pc.is_null(found.data.column(name)).to_numpy()[rows[split]].sum())
                if missing:
                    notes.append(f"{split}: {counted(missing, 'sentence')} without a label in column {name}")
    return Chosen(chosen, notes, labels)


def kept_of(name: str, source: Texts, data: DataConfig) -> tuple[np.ndarray, list[str]]:
    """Return the rows of a split to keep, and notes on how it was read and what is left out.

    Raises:
        UserError: nothing is kept.
    """
    found = kept(source.rows, data)
    return found.rows, notes_on_kept(name, source, len(found.rows), found.left_out(data))


def notes_on_kept(name: str, source: Texts, count: int, left_out: str) -> list[str]:
    """Return notes on how a split was read and what is left out.

    Raises:
        UserError: no sentence is kept.
    """
    if not count:
        raise UserError(f"{source.where}: contains no sentences" + (f": {left_out} left out" if left_out else ""))
    return [f"{name}: {note}" for note in (source.note, left_out and f"{left_out} left out") if note]


def disjoint(rows: dict[str, np.ndarray], texts: dict[str, Texts], data: DataConfig) -> list[str]:
    """Drop what ``data.disjoint`` asks for from the rows of splits, in place; return notes.

    Raises:
        UserError: nothing of a split is left.
    """
    if not data.disjoint:
        return []
    dropped = splits.make_disjoint(rows, lambda split: sentences_of(texts[split].rows.select(rows[split])))
    return [note for split, count in dropped.items() for note in note_on_dropped(split, count, len(rows[split]), texts)]


def note_on_dropped(split: str, dropped: int, left: int, texts: dict[str, Texts]) -> list[str]:
    """Return a note on the sentences of a split that ``data.disjoint`` drops.

    Raises:
        UserError: nothing is left.
    """
    if not left:
        raise UserError(f"{texts[split].where}: data.disjoint leaves no sentence of {split}; leave it out")
    return [f"{split}: {counted(dropped, 'sentence')} left out: in another split"] if dropped else []


def sample(split: str, rows: np.ndarray, data: DataConfig) -> tuple[np.ndarray, list[str]]:
    """Return as many rows as a split is to have, and a note if they are fewer."""
    size = size_of(data, split)
    if size is None or size > len(rows):
        return rows, note_on_size(split, size, len(rows))
    rng = np.random.default_rng((data.seed, SPLITS.index(split)))
    return np.sort(rng.choice(rows, size, replace=False)), []


def note_on_size(split: str, size: int | None, count: int) -> list[str]:
    """Return a note if a split has fewer sentences than requested."""
    if size is None or size <= count:
        return []
    return [f"{split}: {counted(count, 'sentence')}, fewer than the {size:,} requested"]


def sentences_of(texts: Dataset) -> Iterator[str]:
    """Yield the column ``text`` without white space around it; "" where a row has no text."""
    for batch in texts.with_format("arrow").iter(1000):  # as many as are tokenised at once, because they may be long
        yield from ((sentence or "").strip() for sentence in batch[TEXT_COLUMN].to_pylist())


def vocabulary_of(data: DataConfig, train: Dataset, tokenizer: Tokenizer) -> Vocabulary:
    """Build the vocabulary from the tokens of train; that of the captions is closed."""
    if data.path == CAPTIONS:
        return Vocabulary.closed(captions.words())
    if not isinstance(data.tokenizer, WordLevel):
        return vocabulary_of_counts(data, {}, tokenizer)
    counts = pc.value_counts(pc.list_flatten(train.data.column("words")))
    counts = dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))
    return vocabulary_of_counts(data, counts, tokenizer)


def vocabulary_of_counts(data: DataConfig, counts: Mapping[str, int], tokenizer: Tokenizer) -> Vocabulary:
    """Build the vocabulary from how often each word is in train; that of pieces from the tokenizer alone."""
    options = data.tokenizer
    if not isinstance(options, WordLevel):
        assert isinstance(tokenizer, PieceTokenizer)
        return Vocabulary.of_pieces(tokenizer, options.name)
    return Vocabulary.build(counts, options.min_count, options.unk, options.name)


def note_on_unknown(unknown: dict[str, float], tokenizer: str) -> str:
    """Report the share of unknown words by split, as a warning if it is high.

    Args:
        tokenizer: its name.
    """
    shares = ", ".join(f"{share:.2%} of {split}" for split, share in unknown.items())
    if max(unknown.values()) <= MANY_UNKNOWN:
        return f"unknown words: {shares}"
    remedies = ["add text", "set data.tokenizer=bpe, which knows all words"]
    if issubclass(OPTIONS[tokenizer], WordLevel):
        remedies.insert(0, "lower data.min_count")
    if tokenizer in ("words", "treebank"):
        remedies.append(
            "set data.tokenizer=characters for a script without spaces between words (Chinese, Japanese, Thai)"
        )
    return (
        f"WARNING: unknown words: {shares}. A model predicts them as a class, which lowers its perplexity and says"
        f" nothing about the text. Try one of: {'; '.join(remedies)}"
    )


def size_of(data: DataConfig, split: str) -> int | None:
    """Return the requested size of a split."""
    return {"train": data.train_size, "valid": data.valid_size, "test": data.test_size}[split]


@dataclass(frozen=True)
class Kept:
    """Rows to keep, [n], and how many others are left out."""

    rows: np.ndarray
    empty: int
    long: int
    repeated: int

    def left_out(self, data: DataConfig) -> str:
        """Return a description of what is left out ("" if nothing is)."""
        parts = [
            (self.empty, counted(self.empty, "empty line")),
            (self.long, f"{counted(self.long, 'sentence')} of more than {data.max_words} words"),
            (self.repeated, counted(self.repeated, "repeated sentence")),
        ]
        return ", ".join(words for count, words in parts if count)


def kept(text: Dataset, data: DataConfig) -> Kept:
    """Return the rows to keep."""
    kept = array("q")
    seen: set[str] = set()
    empty = long = repeated = 0
    for row, sentence in enumerate(sentences_of(text)):
        if _INVISIBLE.fullmatch(sentence):
            empty += 1
        elif data.max_words is not None and len(sentence.split()) > data.max_words:
            long += 1
        elif data.distinct and sentence in seen:
            repeated += 1
        else:
            kept.append(row)
            if data.distinct:
                seen.add(sentence)
    return Kept(np.frombuffer(kept, dtype=np.int64), empty, long, repeated)


def _cut_missing(rows: dict[str, np.ndarray], texts: dict[str, Texts], data: DataConfig) -> list[str]:
    """Cut the splits that a source lacks from train, or from a single file, in place; return notes."""
    name = WHOLE_FILE if WHOLE_FILE in rows else "train"
    missing = [split for split in ("valid", "test") if split not in rows]
    source, all_rows = texts[name], rows[name]
    if not missing:
        if data.group is not None:
            raise UserError(f"data.group: {source.where} has splits already, so none is cut by groups; leave it out")
        return []
    sizes = cut_sizes(source, len(all_rows), missing, data)
    if source.groups is not None:
        parts = splits.cut_groups(all_rows, sizes, data.seed, _codes(source.groups)[all_rows])
        empty = [split for split, part in parts.items() if not len(part)]
        if empty:
            raise UserError(
                f"{source.where}: the groups of data.group={data.group} are too large to leave one for {empty[0]}; set"
                " data.valid_size and data.test_size"
            )
    else:
        labels = source.labels if data.labels else None
        strata = None if labels is None else _codes(labels.select_columns([*data.labels]))[all_rows]
        parts = splits.cut(all_rows, sizes, data.seed, strata)
    rows.pop(name)
    rows.update(parts)
    texts.update(dict.fromkeys([*missing, "train"], source))
    if name == "train":
        return notes_on_cut({split: len(rows[split]) for split in missing})
    return [
        f"{split}: {counted(len(rows[split]), 'sentence')} in whole groups, of at most {sizes[split]:,}"
        for split in missing
        if len(rows[split]) < sizes[split]
    ]


def notes_on_cut(sizes: Mapping[str, int]) -> list[str]:
    """Return notes on splits that are cut from train."""
    cut = {split: counted(size, "sentence") for split, size in sizes.items()}
    return [f"{split}: {count} cut from train, because there is no such split" for split, count in cut.items()]


def cut_sizes(source: Texts, count: int, missing: Sequence[str], data: DataConfig) -> dict[str, int]:
    """Return the sizes of the splits to cut from ``count`` sentences.

    Raises:
        UserError: they are too few.
    """
    if count <= len(missing):
        raise UserError(
            f"{source.where}: {counted(count, 'sentence')} cannot be split into train, {' and '.join(missing)};"
            " add sentences, or pass a folder with a file for each"
        )
    held_out = min(HELD_OUT_LIMIT, int(HELD_OUT_SHARE * count))
    sizes = {split: size_of(data, split) or held_out for split in missing}
    if min(*sizes.values(), count - sum(sizes.values())) < 1:
        wanted = " and ".join(f"{size:,} for {split}" for split, size in sizes.items())
        raise UserError(
            f"{source.where}: {counted(count, 'sentence')} cannot be split into train, {wanted}; set"
            " data.valid_size and data.test_size, or pass a folder with a file for each"
        )
    return sizes


def _codes(columns: Dataset) -> np.ndarray:
    """Return a number for each row that is the same for equal rows: [N]. Rows without any value get −1."""
    codes, missing = np.zeros(len(columns), dtype=np.int64), np.ones(len(columns), dtype=bool)
    for name in columns.column_names:
        indices = pc.fill_null(columns.data.column(name).combine_chunks().dictionary_encode().indices, -1).to_numpy()
        missing &= indices < 0
        codes = np.unique(codes * (int(indices.max()) + 2) + indices + 1, return_inverse=True)[1]
    return np.where(missing, -1, codes)
