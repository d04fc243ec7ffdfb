"""Prepare a corpus whose train is too large for memory, in a folder from which the next preparation resumes if this one
is killed.

Rows of train are chosen in stages, each of which keeps some of the rows of the stage before. Then they are tokenised
and counted, and, once the vocabulary is known, encoded. All of this is done range by range (``ranges``).
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import xxhash

from distvae.config.schema import CAPTIONS, DataConfig
from distvae.data import local, preparation, sources
from distvae.data.digests import total_size
from distvae.data.encoding import count_unknown, tokenise, with_ends
from distvae.data.local import Files
from distvae.data.plans import GROUP
from distvae.data.preparation import Tokens, sentences_of
from distvae.data.ranges import Rows, dump_json, save_array
from distvae.data.readers.columns import Texts
from distvae.data.sentences import Shard, digest
from distvae.data.splits import WHOLE_FILE
from distvae.data.vocabulary import VOCABULARY, Vocabulary
from distvae.system.files import flush
from distvae.tokenization.base import Tokenizer

if TYPE_CHECKING:  # late, see `data.corpus`
    from datasets import Dataset

# Tokens that a process holds in memory, approximately.
TOKENS = 1 << 22

# Assumed size of a text, relative to its compressed file.
COMPRESSION = 10


@dataclass(frozen=True)
class TrainShards:
    """The shards of train.

    Attributes:
        block: see ``plans.block_plan``.
        unknown: share of words outside the vocabulary.
    """

    files: list[Shard]
    block: int
    unknown: float


@dataclass(frozen=True)
class Prepared:
    """A corpus before it is written.

    Attributes:
        tokens: of all splits, or of all but train.
        shards: of train; None: it is small.
    """

    tokens: Tokens
    vocabulary: Vocabulary
    shards: TrainShards | None = None


def may_be_large(files: Files, data: DataConfig) -> bool:
    """Return whether a corpus that is not yet read may turn out to be one that ``is_large``."""
    if not files:  # of the hub, or drawn
        return data.path != CAPTIONS and _is_sharded(data)
    return COMPRESSION * total_size(local.every(files)) > GROUP * data.shard_size and _is_sharded(data)


def is_large(texts: dict[str, Texts], data: DataConfig) -> bool:
    """Return whether train has more rows than a group of blocks, so that it is prepared in shards."""
    source = texts.get(WHOLE_FILE) or texts["train"]
    return len(source.rows) > GROUP * data.shard_size and _is_sharded(data)


def notes_on_memory(texts: dict[str, Texts], data: DataConfig) -> list[str]:
    """Return a note if train is large and not prepared in shards."""
    source = texts.get(WHOLE_FILE) or texts["train"]
    if len(source.rows) <= GROUP * data.shard_size:
        return []
    key = "label" if data.labels else "group"
    return [f"train: {len(source.rows):,} sentences are held in memory, because data.{key} compares all of them"]


def _is_sharded(data: DataConfig) -> bool:
    """Return whether a large corpus is prepared in shards. Labels and groups are compared across all rows at once."""
    return not data.labels and data.group is None


def read(data: DataConfig, files: Files, work: Path) -> dict[str, Texts]:
    """Read a source, or open what a killed preparation has read; see ``sources.load``."""
    record = work / "read.json"
    if not record.exists():
        texts = sources.load(data, files, work)
        found = {name: (source.where, source.note, _files(source.rows)) for name, source in texts.items()}
        dump_json(record, found)
        return texts
    from datasets import Dataset, concatenate_datasets

    return {
        name: Texts(concatenate_datasets([Dataset.from_file(str(work / file)) for file in parts]), where, note)
        for name, (where, note, parts) in json.loads(record.read_bytes()).items()
    }


def _files(rows: Dataset) -> list[str]:
    return [Path(file["filename"]).name for file in rows.cache_files]


def prepare(data: DataConfig, texts: dict[str, Texts], work: Path, folder: Path) -> Prepared:
    """Choose the sentences of all splits, tokenise them, build the vocabulary, and write the shards of train.

    Args:
        data: which sentences.
        texts: by split, or one ``WHOLE_FILE``.
        work: a lasting folder.
        folder: for the shards.

    Raises:
        UserError: a source is empty, or the tokenizer cannot be trained or read.
    """
    train, chosen, notes = _choose(data, dict(texts), work)
    tokenizer = data.tokenizer.fit(train.sentences())
    counted = train.each("count", partial(_count, tokenizer=tokenizer), "Tokenising train")
    notes += preparation.note_on_empty("train", sum(row["empty"] for row in counted), train.total, data)
    words = {split: tokenise(text, split, tokenizer, data.workers, work) for split, text in chosen.items()}
    for split, tokens in words.items():
        notes += preparation.note_on_empty(split, preparation.empty_of(tokens), len(tokens), data)
    counts: Counter[str] = Counter()
    for number in range(len(train.counts)):
        counts.update(_words(train, number))
    vocabulary = preparation.vocabulary_of_counts(data, counts, tokenizer)
    vocabulary.save(work / VOCABULARY)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(train)
    encoded = train.each("encode", partial(_encode, shards=shards, folder=folder), "Encoding train", len(shards))
    files = [Shard(**row["shard"]) for row in encoded]
    unknown = sum(row["unknown"] for row in encoded) / sum(shard.tokens - 2 * shard.sentences for shard in files)
    return Prepared(Tokens(words, tokenizer, notes), vocabulary, TrainShards(files, data.shard_size, unknown))


def _choose(data: DataConfig, texts: dict[str, Texts], work: Path) -> tuple[Rows, dict[str, Dataset], list[str]]:
    """Return the rows of train, the texts of valid and test, and notes; as ``preparation.choose`` does for others."""
    name = WHOLE_FILE if WHOLE_FILE in texts else "train"
    source = texts.pop(name)
    train, found = Rows.of(source.rows, data, work).narrow("keep", _keep, "Choosing train")
    repeated = sum(row["repeated"] for row in found)
    if data.distinct:
        total = train.total
        train.each("repeated", _repeated, "Comparing train", train.buckets)
        train, _ = train.narrow("distinct", _distinct, "Choosing train")
        repeated += total - train.total
    left_out = preparation.Kept(
        np.empty(0), sum(row["empty"] for row in found), sum(row["long"] for row in found), repeated
    )
    notes = preparation.notes_on_kept(name, source, train.total, left_out.left_out(data))
    rows = {}
    for split, other in texts.items():
        rows[split], noted = preparation.kept_of(split, other, data)
        notes += noted
    missing = [split for split in ("valid", "test") if split not in rows]
    if missing:
        cut = train.draw(preparation.cut_sizes(source, train.total, missing, data))
        train, _ = train.narrow("cut", partial(_without, out=np.concatenate([*cut.values()])), "Cutting train")
        rows |= cut
        texts |= dict.fromkeys(missing, source)
        if name == "train":
            notes += preparation.notes_on_cut({split: len(drawn) for split, drawn in cut.items()})
    texts["train"] = source
    notes += preparation.disjoint(rows, texts, data)
    if data.disjoint:
        held = [sentence for split in rows for sentence in sentences_of(texts[split].rows.select(rows[split]))]
        dump_json(work / "held.json", held)
        total = train.total
        train, _ = train.narrow("disjoint", _disjoint, "Comparing train")
        notes += preparation.note_on_dropped("train", total - train.total, train.total, texts)
    notes += preparation.note_on_size("train", data.train_size, train.total)
    if data.train_size is not None and data.train_size < train.total:
        train, _ = train.narrow("sample", partial(_sample, sizes=train.shares(data.train_size)), "Sampling train")
    chosen = {}
    for split in ("valid", "test"):
        rows[split], noted = preparation.sample(split, rows[split], data)
        notes += noted
        chosen[split] = texts[split].rows.select(rows[split])
    return train, chosen, notes


# -- Steps -------------------------------------------------------------------------------------------------------------


def _keep(rows: Rows, number: int) -> tuple[np.ndarray, dict[str, int]]:
    """Leave out empty and long sentences, and those that are repeated within the range."""
    texts = rows.source.select(range(rows.start(number), rows.ends[number]))
    found = preparation.kept(texts, rows.data)
    if rows.data.distinct:
        _save_hashes(rows, number, found.rows)
    return found.rows, {"empty": found.empty, "long": found.long, "repeated": found.repeated}


# A sentence's hash, and its row, counted from the start of its range. Equal sentences are in one bucket.
_HASH = np.dtype([("high", "u8"), ("low", "u8"), ("row", "u4")])


def _save_hashes(rows: Rows, number: int, kept: np.ndarray) -> None:
    """Write the hashes of sentences by bucket, and where each bucket ends."""
    texts = rows.source.select(rows.start(number) + kept)
    digests = b"".join(xxhash.xxh3_128_digest(sentence.encode()) for sentence in sentences_of(texts))
    hashes = np.empty(len(kept), _HASH)
    hashes["high"], hashes["low"] = np.frombuffer(digests, ">u8").reshape(-1, 2).T
    hashes["row"] = kept
    buckets = hashes["high"] % np.uint64(rows.buckets)
    order = np.argsort(buckets, kind="stable")
    save_array(rows.work / "keep" / f"{number}-hashes.npy", hashes[order])
    ends = np.cumsum(np.bincount(buckets.astype(np.int64), minlength=rows.buckets))
    save_array(rows.work / "keep" / f"{number}-buckets.npy", ends)


def _repeated(rows: Rows, bucket: int) -> dict[str, int]:
    """Find the rows of a bucket that repeat an earlier one."""
    parts = []
    for number in range(len(rows.ends)):
        ends = np.load(rows.work / "keep" / f"{number}-buckets.npy")
        hashes = np.load(rows.work / "keep" / f"{number}-hashes.npy", mmap_mode="r")
        # A copy, because a view would keep the file open, and there may be more ranges than a process may open files.
        part = np.array(hashes[ends[bucket - 1] if bucket else 0 : ends[bucket]])
        parts.append((part["high"], part["low"], rows.start(number) + part["row"].astype(np.int64)))
    high, low, row = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((row, low, high))
    high, low, row = high[order], low[order], row[order]
    again = row[1:][(high[1:] == high[:-1]) & (low[1:] == low[:-1])]
    save_array(rows.work / "repeated" / f"{bucket}.npy", np.sort(again))
    return {}


def _distinct(rows: Rows, number: int) -> tuple[np.ndarray, dict[str, int]]:
    """Leave out sentences that repeat one of an earlier range."""
    ends = rows.start(number), rows.ends[number]
    parts = []
    for bucket in range(rows.buckets):
        again = np.load(rows.work / "repeated" / f"{bucket}.npy", mmap_mode="r")
        parts.append(np.array(again[slice(*np.searchsorted(again, ends))]))
    return _without(rows, number, np.concatenate(parts))


def _without(rows: Rows, number: int, out: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """Leave out some rows of the source."""
    kept = rows.kept(number)
    return kept[~np.isin(rows.start(number) + kept, out)], {}


def _disjoint(rows: Rows, number: int) -> tuple[np.ndarray, dict[str, int]]:
    """Leave out sentences of other splits."""
    held = {*json.loads((rows.work / "held.json").read_bytes())}
    kept = rows.kept(number)
    new = np.fromiter((sentence not in held for sentence in sentences_of(rows.texts(number))), bool, len(kept))
    return kept[new], {}


def _sample(rows: Rows, number: int, sizes: tuple[int, ...]) -> tuple[np.ndarray, dict[str, int]]:
    """Draw as many rows as are wanted of the range."""
    rng = np.random.default_rng((rows.data.seed, 0, number))
    return np.sort(rng.choice(rows.kept(number), sizes[number], replace=False)), {}


def _count(rows: Rows, number: int, tokenizer: Tokenizer) -> dict[str, int]:
    """Tokenise a range: write its distinct words, how often each occurs, and each sentence as places in these."""
    known: dict[str, int] = {}
    places, lengths = array("i"), array("i")
    folder = rows.work / "count"
    with (folder / f"{number}-places").open("wb") as file:
        for sentence in sentences_of(rows.texts(number)):
            words = tokenizer.tokenize(sentence)
            places.extend([known.setdefault(word, len(known)) for word in words])
            lengths.append(len(words))
            if len(places) >= TOKENS:
                file.write(places)
                places = array("i")
        file.write(places)
    flush(folder / f"{number}-places")
    counts = np.zeros(len(known), np.int64)
    for start in range(0, sum(lengths), TOKENS):
        counts += np.bincount(_places(rows, number, start, TOKENS), minlength=len(known))
    dump_json(folder / f"{number}-words.json", dict(zip(known, counts.tolist(), strict=True)))
    save_array(folder / f"{number}-lengths.npy", np.frombuffer(lengths, np.int32))
    return {"empty": lengths.count(0)}


def _places(rows: Rows, number: int, start: int, count: int) -> np.ndarray:
    """Return the words of a range from ``start`` on, as places in its distinct words: int32, at most ``count``."""
    file = rows.work / "count" / f"{number}-places"
    return np.fromfile(file, np.int32, count, offset=np.dtype(np.int32).itemsize * start)


def _words(rows: Rows, number: int) -> dict[str, int]:
    """Return how often each word is in a range."""
    found: dict[str, int] = json.loads((rows.work / "count" / f"{number}-words.json").read_bytes())
    return found


def _shards(rows: Rows) -> list[range]:
    """Return the ranges of each shard: neighbours that have at most ``data.shard_size`` sentences in all.

    Any two neighbouring shards then have more than a block of sentences, so that a block lies in three at most.
    """
    starts, total = [0], 0
    for number, count in enumerate(rows.counts):
        total += count
        if total > rows.data.shard_size:
            starts.append(number)
            total = count
    return [*map(range, starts, [*starts[1:], len(rows.counts)])]


def _encode(rows: Rows, number: int, shards: list[range], folder: Path) -> dict[str, Any]:
    """Write a shard."""
    vocabulary = Vocabulary.load(rows.work / VOCABULARY)
    file = folder / f"{number:05}.arrow"
    sentences = tokens = longest = unknown = 0
    schema = pa.schema([("ids", pa.list_(pa.int32()))])
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for part in shards[number]:
            for ids, lengths in _encoded(rows, part, vocabulary):
                offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
                column = with_ends(ids, offsets, vocabulary)
                writer.write_batch(pa.record_batch([column], schema=schema))
                sentences, tokens = sentences + len(lengths), tokens + len(ids) + 2 * len(lengths)
                longest = max(longest, int(lengths.max()) + 2)
                unknown += count_unknown(ids, vocabulary)
    flush(file)
    shard = Shard(file.name, sentences, tokens, longest, file.stat().st_size, digest(file))
    return {"shard": asdict(shard), "unknown": unknown}


def _encoded(rows: Rows, number: int, vocabulary: Vocabulary) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the ids of a range and the lengths of its sentences, int32, about ``TOKENS`` at a time."""
    ids = np.array(vocabulary.encode([*_words(rows, number)])[1:-1], dtype=np.int32)
    lengths = np.load(rows.work / "count" / f"{number}-lengths.npy")
    ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    first = 0
    while first < len(lengths):
        last = max(int(np.searchsorted(ends, ends[first] + TOKENS, side="right")) - 1, first + 1)
        yield ids[_places(rows, number, ends[first], ends[last] - ends[first])], lengths[first:last]
        first = last
