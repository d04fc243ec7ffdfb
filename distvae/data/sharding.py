"""Prepare a corpus whose train is too large for memory: range by range, in several processes, and in a folder from
which the next preparation resumes if this one is killed.

Rows of train are chosen in stages, each of which keeps some of the rows of the stage before. Then they are tokenised
and counted, and, once the vocabulary is known, encoded. Every step of every range leaves a file with its outcome.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from distvae.config.schema import CAPTIONS, DataConfig
from distvae.data import local, preparation, sources
from distvae.data.local import Files
from distvae.data.plans import GROUP
from distvae.data.preparation import Tokens, sentences_of
from distvae.data.readers.columns import TEXT_COLUMN, Texts
from distvae.data.sentences import Shard, digest
from distvae.data.splits import WHOLE_FILE
from distvae.data.vocabulary import VOCABULARY, Vocabulary
from distvae.data.workers import KilledError, map_numbers
from distvae.system.cores import usable_cores
from distvae.system.errors import UserError
from distvae.system.files import flush, write_text
from distvae.tokenization.base import Tokenizer

if TYPE_CHECKING:  # late, see `data.corpus`
    from datasets import Dataset

# Sentences that a process compares with each other at once, by their hashes.
BUCKET = 1 << 22

# Most bytes of text of a range, which a process holds in memory.
RANGE_BYTES = 1 << 28

# numpy draws from fewer rows than this (``Generator.hypergeometric``).
MOST_SAMPLED = 10**9

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
    size = sum(path.stat().st_size for path in local.every(files))
    return COMPRESSION * size > GROUP * data.shard_size and _is_sharded(data)


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


@contextlib.contextmanager
def lasting_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder in which one process at a time works. It stays if that process or one of its own is killed, or
    the disk is full."""
    lock = _locked(folder)
    try:
        yield folder
    except KilledError:
        raise
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(lock)


def _locked(folder: Path) -> int:
    """Create a folder unless it exists, and lock it, however long that takes. Return the lock's file descriptor."""
    path = folder / "lock"
    while True:
        folder.mkdir(exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("data: another process prepares these sentences; waiting for it", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):  # the other process has finished, and removed the folder
            if path.stat().st_ino == os.fstat(lock).st_ino:
                return lock
        os.close(lock)


def read(data: DataConfig, files: Files, work: Path) -> dict[str, Texts]:
    """Read a source, or open what a killed preparation has read; see ``sources.load``."""
    record = work / "read.json"
    if not record.exists():
        texts = sources.load(data, files, work)
        found = {name: (source.where, source.note, _files(source.rows)) for name, source in texts.items()}
        _write_json(record, found)
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
    words = {split: preparation.tokenise(text, split, tokenizer, data.workers, work) for split, text in chosen.items()}
    for split, tokens in words.items():
        notes += preparation.note_on_empty(split, preparation.empty_of(tokens), len(tokens), data)
    vocabulary = preparation.vocabulary_of_counts(data, _words(train), tokenizer)
    vocabulary.save(work / VOCABULARY)
    folder.mkdir(parents=True, exist_ok=True)
    encoded = train.each("encode", partial(_encode, folder=folder), "Encoding train")
    files = [Shard(**row["shard"]) for row in encoded if row["shard"] is not None]
    unknown = sum(row["unknown"] for row in encoded) / sum(shard.tokens - 2 * shard.sentences for shard in files)
    return Prepared(Tokens(words, tokenizer, notes), vocabulary, TrainShards(files, data.shard_size, unknown))


def _choose(data: DataConfig, texts: dict[str, Texts], work: Path) -> tuple[_Rows, dict[str, Dataset], list[str]]:
    """Return the rows of train, the texts of valid and test, and notes; as ``preparation.choose`` does for others."""
    name = WHOLE_FILE if WHOLE_FILE in texts else "train"
    source = texts.pop(name)
    train, found = _Rows.of(source.rows, data, work).narrow("keep", _keep, "Choosing train")
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
        _write_json(work / "held.json", held)
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


# -- Ranges of rows ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """Rows of train, by range.

    Attributes:
        source: all rows, a column ``text``.
        ends: the row after the last one of each range.
        stage: name of the stage that chose them.
        counts: rows of each range.
    """

    source: Dataset
    ends: tuple[int, ...]
    data: DataConfig
    work: Path
    stage: str = ""
    counts: tuple[int, ...] = ()

    @classmethod
    def of(cls, source: Dataset, data: DataConfig, work: Path) -> _Rows:
        """Cut all rows into ranges of at most ``data.shard_size`` rows and ``RANGE_BYTES`` of text."""
        ends: list[int] = []
        first = rows = size = 0  # of the chunk; of the range that is not yet full
        for chunk in source.data.column(TEXT_COLUMN).chunks:
            sizes = np.cumsum(pc.fill_null(pc.binary_length(chunk), 0).to_numpy(zero_copy_only=False), dtype=np.int64)
            done = 0
            while done < len(chunk):
                before = int(sizes[done - 1]) if done else 0
                fit = int(np.searchsorted(sizes, before + RANGE_BYTES - size, side="right")) - done
                taken = min(len(chunk) - done, data.shard_size - rows, max(fit, 0 if rows else 1))
                rows, done = rows + taken, done + taken
                size += int(sizes[done - 1]) - before if taken else 0
                if not taken or rows == data.shard_size:
                    ends.append(first + done)
                    rows = size = 0
            first += len(chunk)
        if rows:
            ends.append(first)
        return cls(source, tuple(ends), data, work)

    @property
    def total(self) -> int:
        """Number of rows."""
        return sum(self.counts)

    @property
    def buckets(self) -> int:
        """Number of parts in which sentences are compared."""
        return -(-self.ends[-1] // BUCKET)

    def start(self, number: int) -> int:
        """Return the first row of a range."""
        return self.ends[number - 1] if number else 0

    def kept(self, number: int) -> np.ndarray:
        """Return the rows of a range, counted from its start: int32 [n]."""
        rows: np.ndarray = np.load(self.work / self.stage / f"{number}.npy")
        return rows

    def texts(self, number: int) -> Dataset:
        """Return the sentences of a range."""
        return self.source.select(self.start(number) + self.kept(number))

    def sentences(self) -> Iterator[str]:
        """Yield all sentences."""
        for number in range(len(self.ends)):
            yield from sentences_of(self.texts(number))

    def draw(self, sizes: dict[str, int]) -> dict[str, np.ndarray]:
        """Draw the rows of splits, sorted; no row is in two of them."""
        places = np.random.default_rng(self.data.seed).choice(self.total, sum(sizes.values()), replace=False)
        ends = np.cumsum(self.counts)
        found = {}
        for split, drawn in zip(sizes, np.split(places, np.cumsum([*sizes.values()])[:-1]), strict=True):
            drawn = np.sort(drawn)
            ranges = np.searchsorted(ends, drawn, side="right")
            found[split] = np.concatenate(
                [
                    self.start(n) + self.kept(n)[drawn[ranges == n] - (ends[n] - self.counts[n])].astype(np.int64)
                    for n in np.unique(ranges).tolist()
                ]
            )
        return found

    def shares(self, size: int) -> tuple[int, ...]:
        """Draw how many of ``size`` rows are of each range, if every choice of rows is equally likely.

        Raises:
            UserError: there are more rows than numpy can draw from.
        """
        if self.total >= MOST_SAMPLED:
            raise UserError(
                f"data.train_size: cannot sample from {self.total:,} sentences, only from {MOST_SAMPLED:,}; pass fewer"
                " files instead"
            )
        rng, left = np.random.default_rng((self.data.seed, 0)), self.total
        sizes: list[int] = []
        for count in self.counts:
            left -= count
            sizes.append(int(rng.hypergeometric(count, left, size - sum(sizes))))
        return tuple(sizes)

    def each(self, name: str, step: Step, title: str, count: int | None = None) -> list[dict[str, Any]]:
        """Take a step for each range that has no outcome yet, in several processes. Return all outcomes.

        Args:
            count: number of steps; None: of ranges.
        """
        (self.work / name).mkdir(exist_ok=True)
        outcomes = [self.work / name / f"{number}.json" for number in range(count or len(self.ends))]
        left = [number for number, outcome in enumerate(outcomes) if not outcome.exists()]
        if left:
            processes = min(self.data.workers or usable_cores(), len(left))
            map_numbers(left, partial(_take, rows=self, folder=self.work / name, step=step), processes, title)
        return [json.loads(outcome.read_bytes()) for outcome in outcomes]

    def narrow(self, stage: str, step: Choice, title: str) -> tuple[_Rows, list[dict[str, Any]]]:
        """Choose from the rows of each range. Return the chosen ones, and the outcomes."""
        outcomes = self.each(stage, partial(_choose_rows, step=step, folder=self.work / stage), title)
        return replace(self, stage=stage, counts=tuple(row["rows"] for row in outcomes)), outcomes


# Takes the rows of a stage and the number of a range.
Step = Callable[..., dict[str, Any]]
Choice = Callable[..., tuple[np.ndarray, dict[str, int]]]


def _take(row: dict[str, int], rows: _Rows, folder: Path, step: Step) -> None:
    """Take a step, and write its outcome last."""
    number = row["number"]
    _write_json(folder / f"{number}.json", step(rows, number))


def _choose_rows(rows: _Rows, number: int, step: Choice, folder: Path) -> dict[str, int]:
    found, counts = step(rows, number)
    _save(folder / f"{number}.npy", found.astype(np.int32))
    return {"rows": len(found)} | counts


# -- Steps -------------------------------------------------------------------------------------------------------------


def _keep(rows: _Rows, number: int) -> tuple[np.ndarray, dict[str, int]]:
    """Leave out empty and long sentences, and those that are repeated within the range."""
    texts = rows.source.select(range(rows.start(number), rows.ends[number]))
    found = preparation.kept(texts, rows.data)
    if rows.data.distinct:
        _save_hashes(rows, number, found.rows)
    return found.rows, {"empty": found.empty, "long": found.long, "repeated": found.repeated}


# A sentence's hash, and its row, counted from the start of its range. Equal sentences are in one bucket.
_HASH = np.dtype([("high", "u8"), ("low", "u8"), ("row", "u4")])


def _save_hashes(rows: _Rows, number: int, kept: np.ndarray) -> None:
    """Write the hashes of sentences by bucket, and where each bucket ends."""
    texts = rows.source.select(rows.start(number) + kept)
    digests = b"".join(xxhash.xxh3_128_digest(sentence.encode()) for sentence in sentences_of(texts))
    hashes = np.empty(len(kept), _HASH)
    hashes["high"], hashes["low"] = np.frombuffer(digests, ">u8").reshape(-1, 2).T
    hashes["row"] = kept
    buckets = hashes["high"] % np.uint64(rows.buckets)
    order = np.argsort(buckets, kind="stable")
    _save(rows.work / "keep" / f"{number}-hashes.npy", hashes[order])
    ends = np.cumsum(np.bincount(buckets.astype(np.int64), minlength=rows.buckets))
    _save(rows.work / "keep" / f"{number}-buckets.npy", ends)


def _repeated(rows: _Rows, bucket: int) -> dict[str, int]:
    """Find the rows of a bucket that repeat an earlier one."""
    parts = []
    for number in range(len(rows.ends)):
        ends = np.load(rows.work / "keep" / f"{number}-buckets.npy")
        hashes = np.load(rows.work / "keep" / f"{number}-hashes.npy", mmap_mode="r")
        part = hashes[ends[bucket - 1] if bucket else 0 : ends[bucket]]
        parts.append((part["high"], part["low"], rows.start(number) + part["row"].astype(np.int64)))
    high, low, row = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((row, low, high))
    high, low, row = high[order], low[order], row[order]
    again = row[1:][(high[1:] == high[:-1]) & (low[1:] == low[:-1])]
    _save(rows.work / "repeated" / f"{bucket}.npy", np.sort(again))
    return {}


def _distinct(rows: _Rows, number: int) -> tuple[np.ndarray, dict[str, int]]:
    """Leave out sentences that repeat one of an earlier range."""
    ends = rows.start(number), rows.ends[number]
    parts = []
    for bucket in range(rows.buckets):
        again = np.load(rows.work / "repeated" / f"{bucket}.npy", mmap_mode="r")
        parts.append(again[slice(*np.searchsorted(again, ends))])
    return _without(rows, number, np.concatenate(parts))


def _without(rows: _Rows, number: int, out: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """Leave out some rows of the source."""
    kept = rows.kept(number)
    return kept[~np.isin(rows.start(number) + kept, out)], {}


def _disjoint(rows: _Rows, number: int) -> tuple[np.ndarray, dict[str, int]]:
    """Leave out sentences of other splits."""
    held = {*json.loads((rows.work / "held.json").read_bytes())}
    kept = rows.kept(number)
    new = np.fromiter((sentence not in held for sentence in sentences_of(rows.texts(number))), bool, len(kept))
    return kept[new], {}


def _sample(rows: _Rows, number: int, sizes: tuple[int, ...]) -> tuple[np.ndarray, dict[str, int]]:
    """Draw as many rows as are wanted of the range."""
    rng = np.random.default_rng((rows.data.seed, 0, number))
    return np.sort(rng.choice(rows.kept(number), sizes[number], replace=False)), {}


def _count(rows: _Rows, number: int, tokenizer: Tokenizer) -> dict[str, int]:
    """Tokenise a range: write its distinct words, and each sentence as places in these."""
    known: dict[str, int] = {}
    places, lengths = array("i"), array("i")
    for sentence in sentences_of(rows.texts(number)):
        words = tokenizer.tokenize(sentence)
        places.extend([known.setdefault(word, len(known)) for word in words])
        lengths.append(len(words))
    folder = rows.work / "count"
    _write_json(folder / f"{number}-words.json", [*known])
    _save(folder / f"{number}-places.npy", np.frombuffer(places, np.int32))
    _save(folder / f"{number}-lengths.npy", np.frombuffer(lengths, np.int32))
    return {"empty": lengths.count(0)}


def _words(rows: _Rows) -> Counter[str]:
    """Return how often each word is in train."""
    total: Counter[str] = Counter()
    for number in range(len(rows.ends)):
        words = json.loads((rows.work / "count" / f"{number}-words.json").read_bytes())
        counts = np.bincount(np.load(rows.work / "count" / f"{number}-places.npy"), minlength=len(words))
        for word, count in zip(words, counts.tolist(), strict=True):
            total[word] += count
    return total


def _encode(rows: _Rows, number: int, folder: Path) -> dict[str, Any]:
    """Write a range's shard; a range without sentences has none."""
    if not rows.counts[number]:
        return {"shard": None, "unknown": 0}
    counted = rows.work / "count"
    vocabulary = Vocabulary.load(rows.work / VOCABULARY)
    words = json.loads((counted / f"{number}-words.json").read_bytes())
    ids = np.array(vocabulary.encode(words)[1:-1], dtype=np.int32)[np.load(counted / f"{number}-places.npy")]
    lengths = np.load(counted / f"{number}-lengths.npy")
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    column = preparation.with_ends(ids, offsets, vocabulary)
    file = folder / f"{number:05}.arrow"
    batch = pa.record_batch([column], ["ids"])
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    flush(file)
    shard = Shard(
        file.name, len(lengths), len(ids) + 2 * len(lengths), int(lengths.max()) + 2, file.stat().st_size, digest(file)
    )
    return {"shard": asdict(shard), "unknown": preparation.count_unknown(ids, vocabulary)}


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, ensure_ascii=False))


def _save(path: Path, rows: np.ndarray) -> None:
    np.save(path, rows)
    flush(path)
