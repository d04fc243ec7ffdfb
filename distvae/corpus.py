"""Sentences from the hub, from files or from the captions, tokenised once into memory-mapped Arrow of token ids.

``prepare`` builds the folder ``<data.cache>/<fingerprint>/`` and ``load`` opens it. The fingerprint is the hash of
all that determines the content, so a change of a file, a setting or this code's ``FORMAT`` builds another folder.

On the way a sentence is: a row of text, or of a named column (pooled) → stripped of white space → left out if it is
empty, too long, or (``distinct``) a repetition within its split → perhaps left out by a seeded down-sample, which
keeps the order → tokenised → encoded with the vocabulary of train.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import glob
import gzip
import hashlib
import importlib.metadata
import itertools
import json
import math
import re
import shutil
import tempfile
import time
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Features, List, Value
from huggingface_hub import HfApi, is_offline_mode

from distvae import captions
from distvae.config import CAPTIONS, SNLI, DataConfig
from distvae.cores import usable_cores
from distvae.errors import UserError
from distvae.files import room_for_sockets, sha256
from distvae.vocabulary import Vocabulary, tokenize

# To be raised with every change of code that changes what is built.
FORMAT = 1

SPLITS = ("train", "valid", "test")
HUB_SPLITS = ("train", "validation", "test")
# Words in names of files, and the names of the hub.
SPLIT_OF_NAME = {"train": "train", "valid": "valid", "validation": "valid", "dev": "valid", "test": "test"}
# How the fingerprint and the notes call the sentences of a single file that is still to be split.
WHOLE_FILE = "file"
# Of a single file, where no size is asked for, this share becomes valid, and as much test, but not more sentences.
HELD_OUT_SHARE, HELD_OUT_LIMIT = 0.1, 6_000

# Pinned, so that everyone has the same sentences and a prepared corpus is found again without the network.
SNLI_REVISION = "cdb5c3d5eed6ead6e5a341c8e56e669bb666725b"
SNLI_COLUMNS = ("premise", "hypothesis")
HUB_TIMEOUT_SECONDS = 10
CAPTION_COUNTS = {"train": 40_000, "valid": 4_000, "test": 4_000}

TEXT_COLUMN = "text"
BUILDERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
# A second process pays for its start with about this many sentences.
SENTENCES_PER_WORKER = 10_000
BATCH = 10_000

# A folder in the cache that was begun so long ago, and not put in its place, is nobody's.
ABANDONED_SECONDS = 7 * 24 * 3600

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
        notes: lines for a person on what was left out, or was fewer than asked for.
    """

    train: Sentences
    valid: Sentences
    test: Sentences
    vocabulary: Vocabulary
    fingerprint: str
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
    files = _find_files(data)
    origin = _origin(data, files)
    fingerprint = hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:16]
    cache = _expand("data.cache", data.cache)
    folder = cache / fingerprint
    if is_whole(folder):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        work = tempfile.TemporaryDirectory(prefix=f".{fingerprint}-", dir=cache, ignore_cleanup_errors=True)
        with work, _quiet_datasets(progress):
            words, notes = _words(data, files, Path(work.name))
            built = Path(work.name, fingerprint)
            _build(built, words, _vocabulary(data, words["train"]), notes, origin)
            _publish(built, folder)
    except OSError as error:
        raise UserError(f"data.cache={data.cache}: cannot be written: {error.strerror or error}") from None
    return folder


def load(folder: str | Path) -> Corpus:
    """Open a folder that ``prepare`` built.

    Raises:
        UserError: the folder is damaged.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"{folder}: is not there; data.cache has to name the same folder on every machine of a run")
    if not is_whole(folder):
        raise UserError(f"{folder}: is not a whole prepared corpus; delete it, and the next training builds it again")
    try:
        # Never into memory, whatever the environment says: ranks share the pages of the map.
        train, valid, test = (
            Sentences(Dataset.load_from_disk(str(folder / split), keep_in_memory=False)) for split in SPLITS
        )
        notes = tuple(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["notes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        # Every file has its length, and yet what it holds is not what was written.
        raise UserError(
            f"{folder}: is damaged ({_reason(error)}); delete it, and the next training builds it again"
        ) from None
    return Corpus(train, valid, test, Vocabulary.load(folder / VOCABULARY), folder.name, notes)


def _sweep(cache: Path) -> None:
    """Remove what killed processes had begun to build, long enough ago that none still builds it."""
    for path in cache.glob(".*-*"):
        if not re.fullmatch(r"\.[0-9a-f]{16}-\w+", path.name):
            continue
        with contextlib.suppress(FileNotFoundError):  # whoever built there has just finished
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


# What determines the content.


def _origin(data: DataConfig, files: dict[str, Path]) -> dict:
    """All that determines the content, as JSON."""
    if data.path == CAPTIONS:
        grammar = hashlib.sha256(Path(captions.__file__).read_bytes()).hexdigest()
        return {"format": FORMAT, "captions": grammar, "counts": _caption_counts(data), "seed": data.seed}
    settings = asdict(data)
    for name in ("path", "workers", "cache"):
        del settings[name]
    if data.path == SNLI:
        source = {"hub": SNLI, "revision": SNLI_REVISION}
    else:
        source = {name: [_builder(path), _sha256(path)] for name, path in files.items()}
    return {"format": FORMAT, "nltk": importlib.metadata.version("nltk"), "source": source, "settings": settings}


def _caption_counts(data: DataConfig) -> dict[str, int]:
    return {split: _size(data, split) or CAPTION_COUNTS[split] for split in SPLITS}


def _size(data: DataConfig, split: str) -> int | None:
    return getattr(data, f"{split}_size")


def _sha256(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


# Which files.


def _find_files(data: DataConfig) -> dict[str, Path]:
    """The file of each split, or one of ``WHOLE_FILE``, or (where nothing is local) none."""
    if data.path in (CAPTIONS, SNLI):
        return {}
    try:
        return _look(_expand("data.path", data.path), data)
    except OSError as error:  # the name is too long, or a folder is locked
        raise UserError(f"data.path={data.path}: cannot be read: {error.strerror}") from None


def _expand(key: str, path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{key}={path}: there is no such user, whose home this could be in") from None


def _look(path: Path, data: DataConfig) -> dict[str, Path]:
    if path.is_dir():
        return {split: _find_split(path, split, data.columns) for split in SPLITS}
    if not path.exists():
        raise UserError(
            f"data.path={data.path}: there is no such file or folder; built in are {CAPTIONS} and, from the hub, {SNLI}"
        )
    if not path.is_file():
        raise UserError(f"{path}: is a pipe, a socket or a device, not a file")
    if _builder(path) is None:
        raise UserError(f"{path}: is of no kind that can be read ({', '.join(BUILDERS)}; .gz too, but for .parquet)")
    return {WHOLE_FILE: path}


def _find_split(folder: Path, split: str, columns: tuple[str, ...] | None) -> Path:
    candidates = sorted(path for path in folder.iterdir() if _builder(path) and split in _splits_named(path))
    if len(candidates) > 1 and columns not in (None, (TEXT_COLUMN,)):
        # As in SNLI's own folder, which has everything twice. Plain text has no columns to name.
        candidates = [path for path in candidates if _builder(path) != "text"]
    if not candidates:
        raise UserError(
            f"{folder}: holds no file for {split}, such as {split}.txt ({', '.join(BUILDERS)}; .gz too, but for"
            " .parquet)"
        )
    if len(candidates) > 1:
        names = ", ".join(path.name for path in candidates)
        raise UserError(f"{folder}: holds several files for {split}: {names}; leave one there")
    others = _splits_named(candidates[0]) - {split}
    if others:
        raise UserError(f"{candidates[0]}: is it {split} or {' or '.join(sorted(others))}? Name one split in its name")
    return candidates[0]


def _builder(path: Path) -> str | None:
    """The datasets builder that reads a file, by its suffix. None: it is no data file."""
    builder = BUILDERS.get(_kind(path))
    if path.name.startswith(".") or not path.is_file() or (_is_gzip(path) and builder == "parquet"):
        return None
    return builder


def _kind(path: Path) -> str:
    """The suffix, without `.gz`."""
    return (path.with_suffix("") if _is_gzip(path) else path).suffix.lower()


def _is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def _splits_named(path: Path) -> set[str]:
    """The splits that stand as words in a file's name: `snli_1.0_dev.jsonl` → {valid}."""
    return {SPLIT_OF_NAME[word] for word in re.split(r"[^a-z]+", path.name.lower()) if word in SPLIT_OF_NAME}


# Rows of text.


def _words(data: DataConfig, files: dict[str, Path], work: Path) -> tuple[dict[str, Dataset], list[str]]:
    """Each split's sentences as a column ``words`` of tokens, and notes on what was left out."""
    if data.path == CAPTIONS:
        counts = _caption_counts(data)
        draws = {split: captions.generate(counts[split], (data.seed, i)) for i, split in enumerate(SPLITS)}
        return {split: Dataset.from_dict({"words": tokens}) for split, tokens in draws.items()}, []
    texts = _load_texts(data, files, work)
    rows, notes = {}, []
    for name, text in texts.items():
        where = files.get(name, f"{SNLI}, {name}")
        try:
            rows[name], left_out = _sift(text, data)
        except UnicodeDecodeError:  # Parquet promises that its texts are UTF-8, but nobody looks
            raise UserError(f"{where}: holds a sentence that is not UTF-8") from None
        if not len(rows[name]):
            raise UserError(f"{where}: holds no sentence" + (f": {left_out} left out" if left_out else ""))
        if left_out:
            notes.append(f"{name}: {left_out} left out")
    if WHOLE_FILE in texts:
        rows = _split_rows(rows[WHOLE_FILE], data, files[WHOLE_FILE])
        texts = dict.fromkeys(SPLITS, texts[WHOLE_FILE])
    words = {}
    for i, split in enumerate(SPLITS):
        size = _size(data, split)
        if size is not None and size > len(rows[split]):
            notes.append(f"{split}: {_count(len(rows[split]), 'sentence')}, fewer than the {size:,} asked for")
        elif size is not None:
            rows[split] = np.sort(np.random.default_rng((data.seed, i)).choice(rows[split], size, replace=False))
        words[split] = _tokenise(texts[split].select(rows[split]), split, data.workers, work)
    return words, notes


def _load_texts(data: DataConfig, files: dict[str, Path], work: Path) -> dict[str, Dataset]:
    """The column ``text`` of each split, or of ``WHOLE_FILE``."""
    if data.path == SNLI:
        columns = SNLI_COLUMNS if data.columns is None else data.columns
        hub = _load_hub()
        return {SPLIT_OF_NAME[name]: _pool(hub[name], columns, f"{SNLI}, {name}") for name in HUB_SPLITS}
    columns = (TEXT_COLUMN,) if data.columns is None else data.columns
    return {name: _pool(_load_file(path, work), columns, str(path)) for name, path in files.items()}


def _load_hub() -> datasets.DatasetDict:
    # The download stays in the hub's own cache, where later sessions without a network find it (HF_HUB_OFFLINE=1).
    try:
        if not is_offline_mode():
            # Without a network, load_dataset would try again for half a minute.
            HfApi().dataset_info(SNLI, revision=SNLI_REVISION, timeout=HUB_TIMEOUT_SECONDS)
        return datasets.load_dataset(SNLI, revision=SNLI_REVISION)
    except Exception as error:
        raise UserError(
            f"{SNLI}: cannot be had from the hub ({_reason(error)}); without a network, bring SNLI 1.0"
            " (https://nlp.stanford.edu/projects/snli) and pass its folder:"
            " data.path=FOLDER data.columns=[sentence1,sentence2]"
        ) from error


def _load_file(path: Path, work: Path) -> Dataset:
    builder = _builder(path)
    options = {}
    if builder == "parquet":
        _check_parquet(path)
    else:
        _check_lines(path)
    if builder == "json":
        _check_json(path)
    if builder == "text":
        options = {"encoding": "utf-8-sig"}
    if builder == "csv":
        # "None", "NA" and "12" are sentences too.
        options = {
            # A column without a name, as of pandas' row numbers, gets one from pandas.
            "features": Features(
                {name or f"Unnamed: {i}": Value("string") for i, name in enumerate(_csv_header(path))}
            ),
            "keep_default_na": False,
        }
    try:
        # load_dataset takes brackets and stars for patterns.
        files = {"train": glob.escape(str(path.absolute()))}
        return datasets.load_dataset(builder, data_files=files, cache_dir=str(work / "sources"), **options)["train"]
    except Exception as error:
        first = _first_cause(error)
        if isinstance(first, OSError) and first.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise first from None
        if "corresponds to no data" in str(first):
            raise UserError(f"{path}: holds no sentence") from None
        raise UserError(f"{path}: cannot be read as {builder}: {_reason(error)}") from error


def _lines(path: Path) -> Iterator[str]:
    """Lines of a text file, unzipped."""
    try:
        with (gzip.open if _is_gzip(path) else open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}, line {number}: is not UTF-8") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be unzipped: {error}") from None


def _check_lines(path: Path) -> None:
    if sum(bool(line.strip()) for line in _lines(path)) == 0:
        raise UserError(f"{path}: holds no sentence")


def _check_parquet(path: Path) -> None:
    try:
        rows = pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: is not Parquet: {_reason(error)}") from None
    if rows == 0:
        raise UserError(f"{path}: holds no sentence")


def _csv_header(path: Path) -> list[str]:
    """The columns, once it is known that every row has as many: pandas would shift or cut the others."""
    reader = csv.reader(_lines(path), strict=True)
    row = None
    try:
        header = next(reader)
        for row in reader:
            if row and len(row) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: has {len(row)} fields where the header has {len(header)};"
                    " quote sentences that hold commas"
                )
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: is not CSV: {error}") from None
    if row is None:
        raise UserError(f"{path}: holds no sentence")
    return header


def _check_json(path: Path) -> None:
    """See that there is an object a line; but .json may also hold one object, or a list of objects or of texts.

    Arrow's reader does not refuse all else: `null` ends this process by a segmentation fault.
    """
    for number, line in enumerate(_lines(path), 1):
        try:
            well = not line.strip() or isinstance(json.loads(line), dict)
        except (ValueError, RecursionError):
            well = False
        if not well:
            if _kind(path) == ".jsonl":
                raise UserError(f"{path}, line {number}: is not a JSON object")
            return _check_json_document(path)


def _check_json_document(path: Path) -> None:
    try:
        content = json.loads("".join(_lines(path)))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as json: {_reason(error)}") from None
    rows = content if isinstance(content, list) else []
    well = isinstance(content, dict | list) and any(all(isinstance(row, kind) for row in rows) for kind in (dict, str))
    if not well:
        raise UserError(f"{path}: cannot be read as json: should hold an object a line, or a list of objects")


def _pool(rows: Dataset, columns: tuple[str, ...], where: str) -> Dataset:
    """The named columns, one below the other, as the column ``text``."""
    for column in columns:
        if column not in rows.column_names:
            raise UserError(
                f"{where}: has no column {column}, but {', '.join(rows.column_names)};"
                " say by data.columns=[…] which hold sentences"
            )
        kind = getattr(rows.features[column], "dtype", "nested values")
        if kind not in ("string", "large_string"):
            raise UserError(f"{where}: column {column} holds {kind}, not text; say by data.columns=[…] which hold text")
    return datasets.concatenate_datasets(
        [rows.select_columns([column]).rename_columns({column: TEXT_COLUMN}) for column in columns]
    )


# Which rows, and their words.


def _sift(text: Dataset, data: DataConfig) -> tuple[np.ndarray, str]:
    """The rows to keep, and in words what is left out ("" for nothing)."""
    kept = array("q")
    seen: set[str] = set()
    empty = long = repeated = 0
    batches = (batch.column(TEXT_COLUMN).to_pylist() for batch in text.with_format("arrow").iter(BATCH))
    for row, sentence in enumerate(itertools.chain.from_iterable(batches)):
        sentence = (sentence or "").strip()
        if not sentence:
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


def _split_rows(rows: np.ndarray, data: DataConfig, path: Path) -> dict[str, np.ndarray]:
    """Shuffle the rows of a single file and cut them into splits."""
    held_out = min(HELD_OUT_LIMIT, int(HELD_OUT_SHARE * len(rows)))
    valid = held_out if data.valid_size is None else data.valid_size
    test = held_out if data.test_size is None else data.test_size
    if min(valid, test, len(rows) - valid - test) < 1:
        raise UserError(
            f"{path}: {_count(len(rows), 'sentence')} cannot be cut into train, {valid:,} for valid and {test:,} for"
            " test; set data.valid_size and data.test_size, or pass a folder with a file for each"
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
        ids.with_format(None).save_to_disk(str(folder / split))
    vocabulary.save(folder / VOCABULARY)
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    manifest = {"notes": notes, "origin": origin, "files": sizes}
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


def _publish(built: Path, folder: Path) -> None:
    """Put a built corpus in its place, unless another process was first."""
    try:
        built.rename(folder)
    except OSError:
        if not is_whole(folder):
            folder.rename(built.with_name("damaged"))
            built.rename(folder)


def is_whole(folder: Path) -> bool:
    """Whether every file is there and as long as it was written."""
    try:
        sizes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


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


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _reason(error: BaseException) -> str:
    """The first line of what first went wrong."""
    error = _first_cause(error)
    return f"{type(error).__name__}: {error}".splitlines()[0].strip(" :")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
