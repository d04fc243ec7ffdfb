"""Texts of ``sources`` or the captions, tokenised once into memory-mapped Arrow of token ids.

``prepare`` builds the folder ``<data.cache>/<fingerprint>/`` and ``load`` opens it. The fingerprint is the hash of
all that determines the content, so a change of a file, a setting or this code's ``FORMAT`` builds another folder.

On the way a sentence is: a row of text, or of a named column (pooled) → stripped of white space → left out if it is
empty (nothing visible), too long, or (``distinct``) a repetition within its split → perhaps left out by a seeded
down-sample, which keeps the order → tokenised → encoded with the vocabulary of train.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import itertools
import json
import math
import re
import shutil
import tempfile
import time
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from datasets import Dataset, Features, List, Value

from distvae.config.schema import CAPTIONS, DataConfig
from distvae.data import captions, sources
from distvae.data.readers.columns import BATCH, TEXT_COLUMN, Texts
from distvae.data.sources import SPLITS, WHOLE_FILE
from distvae.data.vocabulary import MANY_UNKNOWN, Vocabulary, tokenize
from distvae.system.cores import usable_cores
from distvae.system.errors import UserError
from distvae.system.files import room_for_sockets

# To be raised with every change of code that changes what is built.
FORMAT = 2

# Of a single file, where no size is asked for, this share becomes valid, and as much test, but not more sentences.
HELD_OUT_SHARE, HELD_OUT_LIMIT = 0.1, 6_000

CAPTION_COUNTS = {"train": 40_000, "valid": 4_000, "test": 4_000}

# A second process pays for its start with about this many sentences.
SENTENCES_PER_WORKER = 10_000

# A folder in the cache that was begun so long ago, and not put in its place, is nobody's.
ABANDONED_SECONDS = 7 * 24 * 3600

# White space, and what takes no place on a page: controls, formats, joiners, selectors, fillers.
_INVISIBLE = re.compile(
    r"[\s\x00-\x1f\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202f\u205f-\u206f"
    r"\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]*"
)


MANIFEST = "manifest.json"
VOCABULARY = "vocabulary.json"


class Sentences(Sequence[np.ndarray]):
    """Read-only token ids of a split, views of its memory-mapped Arrow.

    Attributes:
        lengths: int32 [N], tokens of each sentence, ``<s>`` and ``</s>`` included.
    """

    def __init__(self, dataset: Dataset):
        chunks = dataset.data.column("ids").chunks
        self._chunks = [(chunk.values.to_numpy(), chunk.offsets.to_numpy()) for chunk in chunks]
        self._firsts = np.cumsum([0] + [len(chunk) for chunk in chunks]).tolist()
        self.lengths = np.empty(self._firsts[-1], dtype=np.int32)
        for first, (_, offsets) in zip(self._firsts, self._chunks, strict=False):
            np.subtract(offsets[1:], offsets[:-1], out=self.lengths[first : first + len(offsets) - 1])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        """int32 [lengths[index]]."""
        if not 0 <= index < len(self.lengths):
            raise IndexError(f"sentence {index} of {len(self.lengths)}")
        chunk = bisect_right(self._firsts, index) - 1
        values, offsets = self._chunks[chunk]
        row = index - self._firsts[chunk]
        return values[offsets[row] : offsets[row + 1]]


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus.

    Attributes:
        fingerprint: 16 hex digits, of all that determines the content.
        unknown: by split, the share of its words that are not in the vocabulary; ``</s>`` does not count as a word.
            None where the vocabulary is closed.
        notes: lines for a person on how files were read, what was left out, or fewer than asked for, and on unknown
            words, which a closed vocabulary does not have.
    """

    train: Sentences
    valid: Sentences
    test: Sentences
    vocabulary: Vocabulary
    fingerprint: str
    unknown: dict[str, float | None]
    notes: tuple[str, ...]


def prepare(data: DataConfig, progress: bool) -> Path:
    """Build the corpus unless it is there, and return its folder.

    Several processes may do so at once: each builds beside the folder, and the first to finish puts it there.

    Args:
        data: which sentences.
        progress: show progress bars.

    Raises:
        UserError: a file, column or split is missing, unreadable or empty, or the hub cannot be reached.
    """
    files = sources.find_files(data)
    states = sources.states(files)
    origin = _origin(data, files)
    cache = sources.expand("data.cache", data.cache)
    folder = cache / _fingerprint(origin)
    if is_whole(folder):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        work = tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=cache, ignore_cleanup_errors=True)
        with work, _quiet_datasets(progress):
            words, notes = _words(data, files, Path(work.name))
            if sources.states(files) != states or _origin(data, files) != origin:
                raise UserError(
                    f"data.path={data.path}: has changed while it was read; run the same command again when nothing"
                    " writes there"
                )
            built = Path(work.name, folder.name)
            _build(built, words, _vocabulary(data, words["train"]), notes, origin)
            _publish(built, folder)
    except OSError as error:
        raise UserError(f"data.cache={data.cache}: cannot be written: {error.strerror or error}") from None
    return folder


def fingerprint(data: DataConfig) -> str:
    """Return the fingerprint of the corpus that ``prepare`` would build, without building it.

    Raises:
        UserError: a file is missing or unreadable.
    """
    return _fingerprint(_origin(data, sources.find_files(data)))


def load(folder: str | Path) -> Corpus:
    """Open a folder that ``prepare`` built, once every file is known to be what was written.

    Raises:
        UserError: the folder is damaged.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"{folder}: is not there; data.cache has to name the same folder on every machine of a run")
    try:
        manifest = _verify(folder)
        # Never into memory, whatever the environment says: ranks share the pages of the map.
        train, valid, test = (
            Sentences(Dataset.load_from_disk(str(folder / split), keep_in_memory=False)) for split in SPLITS
        )
    except (_DamagedError, OSError) as error:
        raise UserError(f"{folder}: is damaged ({error}); delete it, and the next training builds it again") from None
    vocabulary = Vocabulary.load(folder / VOCABULARY)
    return Corpus(train, valid, test, vocabulary, folder.name, manifest["unknown"], tuple(manifest["notes"]))


def _sweep(cache: Path) -> None:
    """Remove what killed processes had begun to build, long enough ago that none still builds it."""
    for path in cache.glob(".*-*"):
        if not re.fullmatch(r"\.[0-9a-f]{16}-\w+", path.name):
            continue
        with contextlib.suppress(FileNotFoundError):  # whoever built there has just finished
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


# What determines the content.


def _fingerprint(origin: dict) -> str:
    return _sha256(origin)[:16]


def _origin(data: DataConfig, files: dict[str, Path]) -> dict:
    """All that determines the content, as JSON."""
    if data.path == CAPTIONS:
        grammar = hashlib.sha256(Path(captions.__file__).read_bytes()).hexdigest()
        return {"format": FORMAT, "captions": grammar, "counts": _caption_counts(data), "seed": data.seed}
    settings = asdict(data)
    for name in ("path", "workers", "cache"):
        del settings[name]
    nltk = importlib.metadata.version("nltk")
    return {"format": FORMAT, "nltk": nltk, "source": sources.origin(data, files), "settings": settings}


def _caption_counts(data: DataConfig) -> dict[str, int]:
    return {split: _size(data, split) or CAPTION_COUNTS[split] for split in SPLITS}


def _size(data: DataConfig, split: str) -> int | None:
    return getattr(data, f"{split}_size")


# Rows of text.


def _words(data: DataConfig, files: dict[str, Path], work: Path) -> tuple[dict[str, Dataset], list[str]]:
    """Each split's sentences as a column ``words`` of tokens, and notes on what was left out."""
    if data.path == CAPTIONS:
        counts = _caption_counts(data)
        draws = {split: captions.generate(counts[split], (data.seed, i)) for i, split in enumerate(SPLITS)}
        return {split: Dataset.from_dict({"words": tokens}) for split, tokens in draws.items()}, []
    texts = sources.load(data, files, work)
    rows, notes = {}, []
    for name, source in texts.items():
        rows[name], left_out = _sift(source.rows, data)
        if not len(rows[name]):
            raise UserError(f"{source.where}: holds no sentence" + (f": {left_out} left out" if left_out else ""))
        notes += [f"{name}: {note}" for note in (source.note, left_out and f"{left_out} left out") if note]
    if WHOLE_FILE in texts:
        rows = _split_rows(rows[WHOLE_FILE], data, texts[WHOLE_FILE])
        texts = dict.fromkeys(SPLITS, texts[WHOLE_FILE])
    words = {}
    for i, split in enumerate(SPLITS):
        size = _size(data, split)
        if size is not None and size > len(rows[split]):
            notes.append(f"{split}: {_count(len(rows[split]), 'sentence')}, fewer than the {size:,} asked for")
        elif size is not None:
            rows[split] = np.sort(np.random.default_rng((data.seed, i)).choice(rows[split], size, replace=False))
        words[split] = _tokenise(texts[split].rows.select(rows[split]), split, data.workers, work)
    return words, notes


# Which rows, and their words.


def _sift(text: Dataset, data: DataConfig) -> tuple[np.ndarray, str]:
    """The rows to keep, and in words what is left out ("" for nothing)."""
    kept = array("q")
    seen: set[str] = set()
    empty = long = repeated = 0
    batches = (batch.to_pylist() for batch in text.data.column(TEXT_COLUMN).chunks)
    for row, sentence in enumerate(itertools.chain.from_iterable(batches)):
        sentence = (sentence or "").strip()
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


def _split_rows(rows: np.ndarray, data: DataConfig, source: Texts) -> dict[str, np.ndarray]:
    """Shuffle the rows of a single file and cut them into splits."""
    held_out = min(HELD_OUT_LIMIT, int(HELD_OUT_SHARE * len(rows)))
    valid = held_out if data.valid_size is None else data.valid_size
    test = held_out if data.test_size is None else data.test_size
    if min(valid, test, len(rows) - valid - test) < 1:
        raise UserError(
            f"{source.where}: {_count(len(rows), 'sentence')} cannot be cut into train, {valid:,} for valid and"
            f" {test:,} for test; set data.valid_size and data.test_size, or pass a folder with a file for each"
        )
    cut = np.split(np.random.default_rng(data.seed).permutation(rows), [valid, valid + test])
    return {split: np.sort(part) for split, part in zip(("valid", "test", "train"), cut, strict=True)}


def _tokenise(text: Dataset, split: str, workers: int | None, work: Path) -> Dataset:
    """Column ``text`` → column ``words``."""
    processes = min(workers or usable_cores(), math.ceil(len(text) / SENTENCES_PER_WORKER))
    with room_for_sockets():
        return text.map(
            _tokenise_batch,
            batched=True,
            remove_columns=text.column_names,
            features=Features({"words": List(Value("string"))}),
            num_proc=processes if processes > 1 else None,
            cache_file_name=str(work / f"{split}-words.arrow"),
            desc=f"Tokenising {split}",
        )


def _tokenise_batch(batch: dict[str, list[str]]) -> dict[str, list[list[str]]]:
    return {"words": [tokenize(sentence) for sentence in batch[TEXT_COLUMN]]}


def _vocabulary(data: DataConfig, train: Dataset) -> Vocabulary:
    if data.path == CAPTIONS:
        return Vocabulary.closed(captions.words())
    counts = pc.value_counts(pc.list_flatten(train.data.column("words")))
    counts = dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))
    return Vocabulary.build(counts, data.min_count, data.unk)


# The folder.


def _build(folder: Path, words: dict[str, Dataset], vocabulary: Vocabulary, notes: list[str], origin: dict) -> None:
    """Write the whole corpus into a new folder."""
    unknown = {}
    for split, sentences in words.items():
        ids = sentences.with_format("arrow").map(
            _encode_batch,
            batched=True,
            batch_size=BATCH,
            writer_batch_size=BATCH,
            remove_columns=["words"],
            features=Features({"ids": List(Value("int32"))}),
            fn_kwargs={"vocabulary": vocabulary},
            cache_file_name=str(folder.with_name(f"{split}-ids.arrow")),
            desc=f"Encoding {split}",
        )
        unknown[split] = None if vocabulary.unk == "closed" else _share_of_unknown(ids.data.column("ids"), vocabulary)
        ids.with_format(None).save_to_disk(str(folder / split))
    vocabulary.save(folder / VOCABULARY)
    digests = {str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    if vocabulary.unk != "closed":
        notes = [*notes, _note_on_unknown(unknown)]
    manifest = {"notes": notes, "unknown": unknown, "origin": origin, "files": digests}
    manifest["sha256"] = _sha256(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _encode_batch(batch: pa.Table, vocabulary: Vocabulary) -> pa.Table:
    """Column ``words`` → column ``ids``. Each distinct word of the batch is looked up once."""
    words = batch.column("words").combine_chunks()
    flat = words.flatten().dictionary_encode()
    ids = np.array(vocabulary.encode(flat.dictionary.to_pylist())[1:-1], dtype=np.int32)[flat.indices]
    offsets = words.offsets.to_numpy() - words.offsets[0].as_py()
    # Where a sentence begins and where it ends, which is where the next one begins.
    places = np.repeat(offsets, 2)[1:-1]
    ids = np.insert(ids, places, np.tile([vocabulary.bos, vocabulary.eos], len(words)))
    return pa.table({"ids": pa.ListArray.from_arrays(offsets + 2 * np.arange(len(offsets), dtype=np.int32), ids)})


def _share_of_unknown(sentences: pa.ChunkedArray, vocabulary: Vocabulary) -> float:
    """The share of words, without ``<s>`` and ``</s>``, that are not in the vocabulary."""
    unknown, words = 0, -2 * len(sentences)
    for chunk in sentences.chunks:
        ids = chunk.flatten().to_numpy()
        first, last = vocabulary.unknown_ids[0], vocabulary.unknown_ids[-1]
        unknown += int(np.count_nonzero((ids >= first) & (ids <= last)))
        words += len(ids)
    return unknown / words


def _note_on_unknown(unknown: dict[str, float]) -> str:
    shares = ", ".join(f"{share:.2%} of {split}" for split, share in unknown.items())
    if max(unknown.values()) <= MANY_UNKNOWN:
        return f"unknown words: {shares}"
    return (
        f"WARNING: unknown words: {shares}. A model predicts them as a class, which lowers its perplexity and says"
        " nothing about the text. Lower data.min_count, add text, or separate words by spaces where the script does"
        " not (Chinese, Japanese, Thai)"
    )


def _publish(built: Path, folder: Path) -> None:
    """Put a built corpus in its place, unless another process was first."""
    for attempt in itertools.count():
        try:
            built.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            if is_whole(folder):
                return
        with contextlib.suppress(FileNotFoundError):  # another process has just moved it away
            folder.rename(built.with_name(f"damaged-{attempt}"))


def is_whole(folder: Path) -> bool:
    """Whether every file is there and is what was written."""
    try:
        _verify(folder)
    except _DamagedError:
        return False
    return True


class _DamagedError(ValueError):
    """A folder is not what was written; the message says which file."""


def _verify(folder: Path) -> dict:
    """Read the manifest of a corpus and compare all files with it.

    Raises:
        _DamagedError: one is missing, or is not what was written.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        digest = manifest.pop("sha256")
        well = digest == _sha256(manifest) and folder.name == _fingerprint(manifest["origin"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        well = False
    if not well:
        raise _DamagedError(f"{MANIFEST} is missing or not what was written")
    for name, digest in manifest["files"].items():
        try:
            well = _digest(folder / name) == digest
        except OSError:
            well = False
        if not well:
            raise _DamagedError(f"{name} is missing or not what was written")
    return manifest


def _sha256(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    """A digest against damage, as fast as the memory: every process of every run reads the whole corpus for it."""
    digest, block = xxhash.xxh3_128(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


@contextlib.contextmanager
def _quiet_datasets(progress: bool) -> Iterator[None]:
    """Keep datasets from logging errors that we explain ourselves, and its progress bars off unless asked for."""
    verbosity = datasets.logging.get_verbosity()
    hide = not progress and not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if hide:
            datasets.enable_progress_bars()


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
