"""Choose the sentences of each split, tokenise them, build the vocabulary, and encode."""

from __future__ import annotations

import math
import re
import unicodedata
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from distvae.config.schema import CAPTIONS, DataConfig
from distvae.data import captions, sources, splits
from distvae.data.local import Files
from distvae.data.readers.columns import BATCH, TEXT_COLUMN, Texts
from distvae.data.splits import SPLITS, WHOLE_FILE
from distvae.data.vocabulary import MANY_UNKNOWN, Vocabulary
from distvae.system.cores import usable_cores
from distvae.system.errors import UserError
from distvae.system.files import room_for_sockets
from distvae.tokenization import BUILT_IN, OPTIONS
from distvae.tokenization.base import Tokenizer, WordLevel
from distvae.tokenization.pieces import PieceTokenizer
from distvae.tokenization.treebank import TreebankTokenizer

if TYPE_CHECKING:  # late, see `data.corpus`
    from datasets import Dataset

# Share of a single file, and maximum number of sentences, for each of valid and test unless sizes are configured.
HELD_OUT_SHARE, HELD_OUT_LIMIT = 0.1, 6_000

CAPTION_COUNTS = {"train": 40_000, "valid": 4_000, "test": 4_000}

# Starting a process takes as long as tokenising about this many sentences.
SENTENCES_PER_WORKER = 10_000

# Column of the characters of each sentence, its end included.
CHARACTERS = "characters"

# White space and invisible characters: controls, formats, joiners, selectors, fillers.
_INVISIBLE = re.compile(
    r"[\s\x00-\x1f\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202f\u205f-\u206f"
    r"\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]*"
)


def caption_counts(data: DataConfig) -> dict[str, int]:
    """Return how many captions each split draws."""
    return {split: _size(data, split) or CAPTION_COUNTS[split] for split in SPLITS}


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


def tokens_of(data: DataConfig, files: Files, work: Path) -> Tokens:
    """Read and tokenise all splits.

    Args:
        data: which sentences.
        files: by split, or one ``WHOLE_FILE``.
        work: folder for temporary Arrow files.

    Raises:
        UserError: a source is unreadable or empty, or too small to be split, or the tokenizer cannot be trained or
            read.
    """
    from datasets import Dataset

    if data.path == CAPTIONS:
        drawn = drawn_captions(data)
        words = {split: Dataset.from_dict({"words": [tokens for tokens, _ in pairs]}) for split, pairs in drawn.items()}
        labels = {split: _factor_columns([found for _, found in pairs]) for split, pairs in drawn.items()}
        return Tokens(words, BUILT_IN["words"], [], labels)
    chosen = choose(data, files, work)
    tokenizer = data.tokenizer.fit(sentences_of(chosen.texts["train"]))
    words = {split: tokenise(text, split, tokenizer, data.workers, work) for split, text in chosen.texts.items()}
    return Tokens(words, tokenizer, [*chosen.notes, *_without_tokens(words, data)], chosen.labels)


def _without_tokens(words: dict[str, Dataset], data: DataConfig) -> Iterator[str]:
    """Yield notes on sentences of which a tokenizer keeps nothing.

    Raises:
        UserError: it keeps nothing of a split.
    """
    for split, rows in words.items():
        empty = int(pc.sum(pc.equal(pc.list_value_length(rows.data.column("words")), 0)).as_py())
        if empty == len(rows):
            raise UserError(f"data.tokenizer={data.tokenizer.name}: knows nothing of {split}; use another tokenizer")
        if empty:
            yield f"{split}: {_count(empty, 'sentence')} of which data.tokenizer={data.tokenizer.name} knows nothing"


def drawn_captions(data: DataConfig) -> dict[str, list[tuple[list[str], captions.Factors]]]:
    """Return the tokens and the factors of the captions of each split."""
    counts = caption_counts(data)
    return {split: captions.draw(counts[split], (data.seed, i)) for i, split in enumerate(SPLITS)}


def _factor_columns(factors: list[captions.Factors]) -> Dataset:
    """Return a column of labels for each factor."""
    from datasets import Dataset

    return Dataset.from_dict({name: [getattr(found, name) for found in factors] for name in captions.Factors._fields})


def choose(data: DataConfig, files: Files, work: Path) -> Chosen:
    """Read all splits of a source other than captions, and choose the sentences to use.

    Args: those of ``tokens_of``.

    Raises:
        UserError: a source is unreadable or empty, or too small to be split.
    """
    texts = sources.load(data, files, work)
    rows, notes = {}, []
    for name, source in texts.items():
        rows[name], left_out = kept(source.rows, data)
        if not len(rows[name]):
            raise UserError(f"{source.where}: contains no sentences" + (f": {left_out} left out" if left_out else ""))
        notes += [f"{name}: {note}" for note in (source.note, left_out and f"{left_out} left out") if note]
    notes += _cut_missing(rows, texts, data)
    if data.disjoint:
        dropped = splits.make_disjoint(rows, lambda split: sentences_of(texts[split].rows.select(rows[split])))
        for split, count in dropped.items():
            if not len(rows[split]):
                raise UserError(f"{texts[split].where}: data.disjoint leaves no sentence of {split}; leave it out")
            if count:
                notes.append(f"{split}: {_count(count, 'sentence')} left out: in another split")
    chosen, labels = {}, {}
    for i, split in enumerate(SPLITS):
        size = _size(data, split)
        if size is not None and size > len(rows[split]):
            notes.append(f"{split}: {_count(len(rows[split]), 'sentence')}, fewer than the {size:,} requested")
        elif size is not None:
            rows[split] = np.sort(np.random.default_rng((data.seed, i)).choice(rows[split], size, replace=False))
        chosen[split] = texts[split].rows.select(rows[split])
        found = texts[split].labels
        if found is not None:
            labels[split] = found.select(rows[split])
            for name in found.column_names:
                missing = int(pc.is_null(found.data.column(name)).to_numpy()[rows[split]].sum())
                if missing:
                    notes.append(f"{split}: {_count(missing, 'sentence')} without a label in column {name}")
    return Chosen(chosen, notes, labels)


def sentences_of(texts: Dataset) -> Iterator[str]:
    """Yield the column ``text`` without white space around it; "" where a row has no text."""
    for batch in texts.with_format("arrow").iter(1000):  # as many as are tokenised at once, because they may be long
        yield from ((sentence or "").strip() for sentence in batch[TEXT_COLUMN].to_pylist())


def vocabulary_of(data: DataConfig, train: Dataset, tokenizer: Tokenizer) -> Vocabulary:
    """Build the vocabulary from the tokens of train; that of the captions is closed."""
    if data.path == CAPTIONS:
        return Vocabulary.closed(captions.words())
    options = data.tokenizer
    if not isinstance(options, WordLevel):
        assert isinstance(tokenizer, PieceTokenizer)
        return Vocabulary.of_pieces(tokenizer, options.name)
    counts = pc.value_counts(pc.list_flatten(train.data.column("words")))
    counts = dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))
    return Vocabulary.build(counts, options.min_count, options.unk, options.name)


def encode(words: Dataset, vocabulary: Vocabulary, split: str, path: Path) -> Dataset:
    """Map the column ``words`` to ``ids`` of ``<s> words </s>``, int32, in an Arrow file at ``path``."""
    from datasets import Features, List, Value

    others = [name for name in words.column_names if name != "words"]
    return words.with_format("arrow").map(
        _encode_batch,
        batched=True,
        batch_size=BATCH,
        writer_batch_size=BATCH,
        remove_columns=["words"],
        features=Features({"ids": List(Value("int32"))} | {name: words.features[name] for name in others}),
        fn_kwargs={"vocabulary": vocabulary},
        cache_file_name=str(path),
        desc=f"Encoding {split}",
    )


def share_of_unknown(sentences: pa.ChunkedArray, vocabulary: Vocabulary) -> float:
    """Return the share of words, not counting ``<s>`` and ``</s>``, that are not in the vocabulary."""
    unknown, words = 0, -2 * len(sentences)
    for chunk in sentences.chunks:
        ids = chunk.flatten().to_numpy()
        first, last = vocabulary.unknown_ids[0], vocabulary.unknown_ids[-1]
        unknown += int(np.count_nonzero((ids >= first) & (ids <= last)))
        words += len(ids)
    return unknown / words


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


def _size(data: DataConfig, split: str) -> int | None:
    return {"train": data.train_size, "valid": data.valid_size, "test": data.test_size}[split]


def kept(text: Dataset, data: DataConfig) -> tuple[np.ndarray, str]:
    """Return the rows to keep, and a description of what is left out ("" if nothing is)."""
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
    counted = [
        (empty, _count(empty, "empty line")),
        (long, f"{_count(long, 'sentence')} of more than {data.max_words} words"),
        (repeated, _count(repeated, "repeated sentence")),
    ]
    return np.frombuffer(kept, dtype=np.int64), ", ".join(words for count, words in counted if count)


def _cut_missing(rows: dict[str, np.ndarray], texts: dict[str, Texts], data: DataConfig) -> list[str]:
    """Cut the splits that a source lacks from train, or from a single file, in place; return notes."""
    name = WHOLE_FILE if WHOLE_FILE in rows else "train"
    missing = [split for split in ("valid", "test") if split not in rows]
    source, all_rows = texts[name], rows[name]
    if not missing:
        if data.group is not None:
            raise UserError(f"data.group: {source.where} has splits already, so none is cut by groups; leave it out")
        return []
    if len(all_rows) <= len(missing):
        raise UserError(
            f"{source.where}: {_count(len(all_rows), 'sentence')} cannot be split into train, {' and '.join(missing)};"
            " add sentences, or pass a folder with a file for each"
        )
    held_out = min(HELD_OUT_LIMIT, int(HELD_OUT_SHARE * len(all_rows)))
    sizes = {split: _size(data, split) or held_out for split in missing}
    if min(*sizes.values(), len(all_rows) - sum(sizes.values())) < 1:
        wanted = " and ".join(f"{size:,} for {split}" for split, size in sizes.items())
        raise UserError(
            f"{source.where}: {_count(len(all_rows), 'sentence')} cannot be split into train, {wanted}; set"
            " data.valid_size and data.test_size, or pass a folder with a file for each"
        )
    if source.groups is not None:
        parts = splits.cut_groups(all_rows, sizes, data.seed, _codes(source.groups)[all_rows])
        empty = [split for split, part in parts.items() if not len(part)]
        if empty:
            raise UserError(
                f"{source.where}: the groups of data.group={data.group} are too large to leave one for {empty[0]}; set"
                " data.valid_size and data.test_size"
            )
    else:
        strata = None if source.labels is None else _codes(source.labels)[all_rows]
        parts = splits.cut(all_rows, sizes, data.seed, strata)
    rows.pop(name)
    rows.update(parts)
    texts.update(dict.fromkeys([*missing, "train"], source))
    notes = []
    for split in missing:
        cut = _count(len(rows[split]), "sentence")
        if name == "train":
            notes.append(f"{split}: {cut} cut from train, because there is no such split")
        elif len(rows[split]) < sizes[split]:
            notes.append(f"{split}: {cut} in whole groups, of at most {sizes[split]:,}")
    return notes


def _codes(columns: Dataset) -> np.ndarray:
    """Return a number for each row that is the same for equal rows: [N]. Rows without any value get −1."""
    codes, missing = np.zeros(len(columns), dtype=np.int64), np.ones(len(columns), dtype=bool)
    for name in columns.column_names:
        indices = pc.fill_null(columns.data.column(name).combine_chunks().dictionary_encode().indices, -1).to_numpy()
        missing &= indices < 0
        codes = np.unique(codes * (int(indices.max()) + 2) + indices + 1, return_inverse=True)[1]
    return np.where(missing, -1, codes)


def tokenise(
    text: Dataset, split: str, tokenizer: Tokenizer, workers: int | None, work: Path, count: bool | None = None
) -> Dataset:
    """Map the column ``text`` to ``words`` and ``characters``.

    Args:
        split: name of the text.
        workers: processes. None: one per core.
        work: folder for temporary Arrow files.
        count: whether to count characters. None: unless the tokenizer has the Treebank rules, so that such a corpus is
            the one that older versions built.
    """
    if count is None:
        count = not isinstance(tokenizer, TreebankTokenizer)
    from datasets import Features, List, Value

    features = {"words": List(Value("string"))}
    if count:
        features[CHARACTERS] = Value("int32")
    processes = min(workers or usable_cores(), math.ceil(len(text) / SENTENCES_PER_WORKER))
    with room_for_sockets():
        return text.map(
            _tokenise_batch,
            batched=True,
            remove_columns=text.column_names,
            features=Features(features),
            fn_kwargs={"tokenizer": tokenizer, "count": count},
            num_proc=processes if processes > 1 else None,
            cache_file_name=str(work / f"{split}-words.arrow"),
            desc=f"Tokenising {split}",
        )


def _tokenise_batch(batch: dict[str, list[str]], tokenizer: Tokenizer, count: bool) -> dict[str, list[Any]]:
    sentences = [sentence.strip() for sentence in batch[TEXT_COLUMN]]
    columns: dict[str, list[Any]] = {"words": [tokenizer.tokenize(sentence) for sentence in sentences]}
    if count:
        columns[CHARACTERS] = [1 + len(unicodedata.normalize("NFC", sentence)) for sentence in sentences]
    return columns


def _encode_batch(batch: pa.Table, vocabulary: Vocabulary) -> pa.Table:
    """Map the column ``words`` to ``ids``, looking up each distinct word of the batch once."""
    words = batch.column("words").combine_chunks()
    flat = words.flatten().dictionary_encode()
    ids = np.array(vocabulary.encode(flat.dictionary.to_pylist())[1:-1], dtype=np.int32)[flat.indices]
    offsets = words.offsets.to_numpy() - words.offsets[0].as_py()
    # The start and end of each sentence; one ends where the next starts.
    places = np.repeat(offsets, 2)[1:-1]
    ids = np.insert(ids, places, np.tile([vocabulary.bos, vocabulary.eos], len(words)))
    rows = pa.ListArray.from_arrays(offsets + 2 * np.arange(len(offsets), dtype=np.int32), ids)
    return pa.table({"ids": rows} | {name: batch.column(name) for name in batch.column_names if name != "words"})


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
