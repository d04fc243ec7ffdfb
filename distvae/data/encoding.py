"""Tokenise sentences, and encode their words."""

from __future__ import annotations

import math
import unicodedata
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from distvae.data.readers.columns import BATCH, TEXT_COLUMN
from distvae.data.vocabulary import Vocabulary
from distvae.data.workers import map_numbers
from distvae.system.cores import usable_cores
from distvae.tokenization.base import Tokenizer
from distvae.tokenization.treebank import TreebankTokenizer

if TYPE_CHECKING:  # late, see `data.corpus`
    from datasets import Dataset

# Starting a process takes as long as tokenising about this many sentences.
SENTENCES_PER_WORKER = 10_000

# Parts in which several processes take the sentences, so that the progress bar moves.
PARTS = 32

# Column of the characters of each sentence, its end included.
CHARACTERS = "characters"


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
    from datasets import Dataset, concatenate_datasets

    title = f"Tokenising {split}"
    step = partial(_tokenise_rows, tokenizer=tokenizer, count=count, title=title)
    processes = min(workers or usable_cores(), math.ceil(len(text) / SENTENCES_PER_WORKER))
    if processes <= 1:
        return step(text, work / f"{split}-words.arrow")
    ends = np.linspace(0, len(text), max(processes, PARTS) + 1).astype(int)
    parts = [*map(range, ends[:-1].tolist(), ends[1:].tolist())]
    files = [work / f"{split}-words-{number}.arrow" for number in range(len(parts))]

    def tokenise_part(number: int) -> None:
        step(text.select(parts[number]), files[number])

    map_numbers(range(len(parts)), tokenise_part, processes, title)
    return concatenate_datasets([Dataset.from_file(str(file)) for file in files])


def _tokenise_rows(text: Dataset, file: Path, tokenizer: Tokenizer, count: bool, title: str) -> Dataset:
    """Tokenise sentences in this process, into an Arrow file."""
    from datasets import Features, List, Value

    return text.map(
        _tokenise_batch,
        batched=True,
        remove_columns=text.column_names,
        features=Features({"words": List(Value("string"))} | ({CHARACTERS: Value("int32")} if count else {})),
        fn_kwargs={"tokenizer": tokenizer, "count": count},
        cache_file_name=str(file),
        load_from_cache_file=False,
        new_fingerprint="words",
        desc=title,
    )


def _tokenise_batch(batch: dict[str, list[str]], tokenizer: Tokenizer, count: bool) -> dict[str, list[Any]]:
    sentences = [sentence.strip() for sentence in batch[TEXT_COLUMN]]
    columns: dict[str, list[Any]] = {"words": [tokenizer.tokenize(sentence) for sentence in sentences]}
    if count:
        columns[CHARACTERS] = [1 + len(unicodedata.normalize("NFC", sentence)) for sentence in sentences]
    return columns


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


def _encode_batch(batch: pa.Table, vocabulary: Vocabulary) -> pa.Table:
    """Map the column ``words`` to ``ids``, looking up each distinct word of the batch once."""
    words = batch.column("words").combine_chunks()
    flat = words.flatten().dictionary_encode()
    ids = np.array(vocabulary.encode(flat.dictionary.to_pylist())[1:-1], dtype=np.int32)[flat.indices]
    offsets = words.offsets.to_numpy() - words.offsets[0].as_py()
    rows = with_ends(ids, offsets, vocabulary)
    return pa.table({"ids": rows} | {name: batch.column(name) for name in batch.column_names if name != "words"})


def with_ends(ids: np.ndarray, offsets: np.ndarray, vocabulary: Vocabulary) -> pa.ListArray:
    """Return sentences with ``<s>`` and ``</s>``.

    Args:
        ids: of all words, int32.
        offsets: where each sentence starts in ``ids``, and the end of the last one, int32.
    """
    # The start and end of each sentence; one ends where the next starts.
    places = np.repeat(offsets, 2)[1:-1]
    ids = np.insert(ids, places, np.tile([vocabulary.bos, vocabulary.eos], len(offsets) - 1))
    return pa.ListArray.from_arrays(offsets + 2 * np.arange(len(offsets), dtype=np.int32), ids)


def share_of_unknown(sentences: pa.ChunkedArray, vocabulary: Vocabulary) -> float:
    """Return the share of words, not counting ``<s>`` and ``</s>``, that are not in the vocabulary."""
    unknown, words = 0, -2 * len(sentences)
    for chunk in sentences.chunks:
        ids = chunk.flatten().to_numpy()
        unknown += count_unknown(ids, vocabulary)
        words += len(ids)
    return unknown / words


def count_unknown(ids: np.ndarray, vocabulary: Vocabulary) -> int:
    """Return the number of words that are not in the vocabulary."""
    first, last = vocabulary.unknown_ids[0], vocabulary.unknown_ids[-1]
    return int(np.count_nonzero((ids >= first) & (ids <= last)))
