"""Corpora: folders of memory-mapped Arrow with the token ids of each split, built once and verified when opened.

``prepare`` builds the folder ``<data.cache>/<fingerprint>/`` and ``load`` opens it. The fingerprint is the hash of
everything that determines the content, so a changed file, setting or ``FORMAT`` gives another folder.

Sentences are rows of text, or of named columns (concatenated). They are stripped of white space; left out if they are
empty (nothing visible), too long, or (``distinct``) repeated within their split; down-sampled by seed in their order;
tokenised; and encoded with the vocabulary of train.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from distvae import tokenization
from distvae.config.schema import CAPTIONS, DataConfig
from distvae.data import captions, local, preparation, sharding, sources
from distvae.data.encoding import CHARACTERS, encode, share_of_unknown
from distvae.data.local import Files
from distvae.data.preparation import Tokens
from distvae.data.sentences import Sentences, Shard, Shards, digest, read, view
from distvae.data.sharding import Prepared
from distvae.data.splits import SPLITS
from distvae.data.vocabulary import VOCABULARY, Vocabulary
from distvae.data.workplace import workplace
from distvae.system.errors import UserError

# `datasets` takes as long to import as half of torch, and a prepared corpus is opened without it.
if TYPE_CHECKING:
    from datasets import Dataset

# Increment with every code change that alters the result.
FORMAT = 2

# Age at which an unfinished folder in the cache counts as abandoned.
ABANDONED_SECONDS = 7 * 24 * 3600

MANIFEST = "manifest.json"
LABELS = "labels"
SHARDS = "shards"

# Settings that are part of the fingerprint only if they differ from their defaults, because older corpora lack them.
_ADDED = {"subset", "split", "label", "group", "disjoint", "shard_size"}


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus.

    Attributes:
        fingerprint: 16 hex digits that identify the content.
        unknown: by split, the share of words (without ``</s>``) that are not in the vocabulary; None if the vocabulary
            is closed.
        notes: lines for the user on how files were read, what was left out or missing, and on unknown words.
        open_labels: opens ``labels``.
    """

    train: Sentences | Shards
    valid: Sentences
    test: Sentences
    vocabulary: Vocabulary
    fingerprint: str
    unknown: dict[str, float | None]
    notes: tuple[str, ...]
    open_labels: Callable[[], dict[str, Dataset]] = dict

    @cached_property
    def labels(self) -> dict[str, Dataset]:
        """Each split's columns of labels, as memory-mapped text, null where a sentence has none; empty without
        labels."""
        return self.open_labels()


def prepare(data: DataConfig, progress: bool, labels: tuple[str, ...] | None = None) -> Path:
    """Build the corpus unless it exists, and return its folder.

    Several processes may call this at once: each builds in a folder of its own, and the first to finish publishes it.

    Args:
        data: which sentences.
        progress: show progress bars.
        labels: columns of labels to keep in place of those of ``data``, which alone choose the sentences and cut the
            splits. Train is then not in shards, whatever its size. None: those of ``data``.

    Raises:
        UserError: a file, column or split is missing, unreadable or empty, or the hub cannot be reached.
    """
    if sources.is_hub(data):
        data = sources.pinned(data)
    if labels == data.labels:
        labels = None
    wanted = data
    if labels is not None:
        wanted = replace(data, label=(*labels, *(name for name in data.labels if name not in labels)))
    files = sources.find_files(data)
    states = sources.states(files)
    origin = _origin(data, files, labels)
    cache = sources.expand("data.cache", data.cache)
    folder = cache / _fingerprint(origin)
    if is_whole(folder):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _sweep(cache)
        large = sharding.may_be_large(files, wanted)
        with workplace(cache, folder.name, large) as work, quiet_datasets(progress):
            if is_whole(folder):  # by now
                return folder
            built = work / folder.name
            if data.path == CAPTIONS:
                found = _whole(data, preparation.tokens_of_captions(data))
            else:
                texts = sharding.read(wanted, files, work) if large else sources.load(wanted, files, work)
                if sources.states(files) != states or _origin(data, files, labels) != origin:
                    raise UserError(
                        f"data.path={data.path}: has changed while it was being read; rerun the same command when"
                        " nothing writes to it"
                    )
                if sharding.is_large(texts, wanted):
                    found = sharding.prepare(data, texts, work, built / "train")
                else:
                    tokens = preparation.tokens_of(data, texts, work)
                    if labels is not None:
                        kept = {split: found.select_columns([*labels]) for split, found in tokens.labels.items()}
                        tokens = replace(tokens, labels=kept if labels else {})
                    notes = [*tokens.notes, *sharding.notes_on_memory(texts, wanted)]
                    found = _whole(data, replace(tokens, notes=notes))
            _build(built, found, origin)
            _publish(built, folder)
    except OSError as error:
        raise UserError(f"data.cache={data.cache}: cannot be written: {error.strerror or error}") from None
    return folder


def _whole(data: DataConfig, tokens: Tokens) -> Prepared:
    """Return the tokens of a corpus without shards, and its vocabulary."""
    return Prepared(tokens, preparation.vocabulary_of(data, tokens.words["train"], tokens.tokenizer))


def fingerprint(data: DataConfig) -> str:
    """Return the fingerprint of the corpus that ``prepare`` would build, without building it.

    Raises:
        UserError: a file is missing or unreadable.
    """
    return _fingerprint(_origin(data, sources.find_files(data)))


def load(folder: str | Path) -> Corpus:
    """Verify and open a folder that ``prepare`` built.

    Raises:
        UserError: the folder is missing or damaged.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"{folder}: does not exist; data.cache must be the same folder on every machine of a run")
    try:
        manifest = _verify(folder)
        # Map the files whatever the environment asks for, so that ranks share their pages.
        whole = [split for split in SPLITS if split != "train" or SHARDS not in manifest]
        splits = {split: _mapped(folder / split) for split in whole}
    except (_DamagedError, OSError) as error:
        raise UserError(f"{folder}: is damaged ({error}); delete it, and the next training will rebuild it") from None
    vocabulary = Vocabulary.load(folder / VOCABULARY)
    opened = {split: Sentences(rows.column("ids"), _characters(rows)) for split, rows in splits.items()}
    valid, test = opened["valid"], opened["test"]
    train: Sentences | Shards | None = opened.get("train")
    if train is None:
        train = Shards(folder / "train", _shards(manifest), manifest[SHARDS]["block"])
    if vocabulary.unk == "closed":  # captions are drawn as tokens
        for sentences in (valid, test):
            sentences.characters = np.array([1 + len(vocabulary.text(ids)) for ids in sentences], dtype=np.int32)
    unknown, notes = manifest["unknown"], tuple(manifest["notes"])

    def open_labels() -> dict[str, Dataset]:
        if not manifest.get(LABELS):
            return {}
        from datasets import Dataset

        return {split: Dataset.load_from_disk(str(folder / LABELS / split), keep_in_memory=False) for split in SPLITS}

    return Corpus(train, valid, test, vocabulary, folder.name, unknown, notes, open_labels)


def _mapped(folder: Path) -> pa.Table:
    """Map the rows that ``Dataset.save_to_disk`` wrote to a folder."""
    return pa.concat_tables([read(file) for file in local.saved(folder)])


def _shards(manifest: dict[str, Any]) -> list[Shard]:
    return [Shard(**shard) for shard in manifest[SHARDS]["files"]]


def _characters(rows: pa.Table) -> np.ndarray | None:
    if CHARACTERS not in rows.column_names:
        return None
    return view(rows.column(CHARACTERS).combine_chunks())


def is_whole(folder: Path) -> bool:
    """Return whether every file of a corpus exists and is unchanged; of shards, whether they have their sizes."""
    try:
        _verify(folder)
    except _DamagedError:
        return False
    return True


def _sweep(cache: Path) -> None:
    """Remove abandoned folders of killed processes."""
    for path in cache.glob(".*-*"):
        if not re.fullmatch(r"\.[0-9a-f]{16}-\w+", path.name):
            continue
        with contextlib.suppress(FileNotFoundError):  # its process has just finished
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _fingerprint(origin: dict[str, Any]) -> str:
    return _sha256(origin)[:16]


def _origin(data: DataConfig, files: Files, labels: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Return everything that determines the content, as JSON; ``labels``: as in ``prepare``."""
    if data.path == CAPTIONS:
        counts = preparation.caption_counts(data)
        return {"format": FORMAT, "captions": captions.GRAMMAR, "counts": counts, "seed": data.seed}
    settings = data.flat()
    for name in ("path", "revision", "workers", "cache"):
        del settings[name]
    for added in fields(data):
        if added.name in _ADDED and settings[added.name] == added.default:
            del settings[added.name]
    if data.tokenizer.name == "treebank":
        del settings["tokenizer"]  # as older versions had it
    origin = {
        "format": FORMAT, **tokenization.origin(data.tokenizer), "source": sources.origin(data, files),
        "settings": settings,
    }  # fmt: skip
    return origin if labels is None else origin | {"labels": [*labels]}


def _build(folder: Path, found: Prepared, origin: dict[str, Any]) -> None:
    """Encode the splits that are not in shards, and write the rest of the corpus into its folder."""
    _clear(folder, found)
    tokens, vocabulary = found.tokens, found.vocabulary
    unknown: dict[str, float] = {} if found.shards is None else {"train": found.shards.unknown}
    closed = vocabulary.unk == "closed"
    for split, sentences in tokens.words.items():
        ids = encode(sentences, vocabulary, split, folder.with_name(f"{split}-ids.arrow"))
        if not closed:
            unknown[split] = share_of_unknown(ids.data.column("ids"), vocabulary)
        ids.with_format(None).save_to_disk(str(folder / split))
    for split, labels in tokens.labels.items():
        labels.save_to_disk(str(folder / LABELS / split))
    vocabulary.save(folder / VOCABULARY)
    notes = [*tokens.notes]
    if not closed:
        notes.append(preparation.note_on_unknown(unknown, vocabulary.tokenizer))
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    digests = {
        str(path.relative_to(folder)): digest(path)
        for path in paths
        if found.shards is None or path.parent.name != "train"
    }
    manifest: dict[str, Any] = {
        "notes": notes,
        "unknown": dict.fromkeys(tokens.words) if closed else unknown,
        "origin": origin,
        "files": digests,
    }
    if tokens.labels:
        manifest[LABELS] = _names(tokens.labels)
    if found.shards is not None:
        manifest[SHARDS] = {"block": found.shards.block, "files": [asdict(shard) for shard in found.shards.files]}
    manifest["sha256"] = _sha256(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _clear(folder: Path, found: Prepared) -> None:
    """Remove what a killed preparation has written, but for shards."""
    for path in [*folder.iterdir()] if folder.exists() else []:
        if path.is_file():
            path.unlink()
        elif found.shards is None or path.name != "train":
            shutil.rmtree(path)


def _names(labels: dict[str, Dataset]) -> dict[str, list[str]]:
    """Return the labels that occur in each column, sorted."""
    names = labels["train"].column_names
    found = {name: set(itertools.chain(*(part.unique(name) for part in labels.values()))) for name in names}
    return {name: sorted(values - {None}) for name, values in found.items()}


def _publish(built: Path, folder: Path) -> None:
    """Rename a built corpus to its final name, unless another process has published it first."""
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


class _DamagedError(ValueError):
    """A file of a corpus is missing or changed; the message names it."""


def _verify(folder: Path) -> dict[str, Any]:
    """Read the manifest of a corpus and check all files against it, and the sizes of shards.

    Raises:
        _DamagedError: a file is missing or changed.
    """
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        whole = manifest.pop("sha256")
        well = whole == _sha256(manifest) and folder.name == _fingerprint(manifest["origin"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        well = False
    if not well:
        raise _DamagedError(f"{MANIFEST} is missing or has changed")
    if "captions" in manifest["origin"] and LABELS not in manifest:
        raise _DamagedError("an older version built it, without labels")
    for name, expected in manifest["files"].items():
        try:
            well = digest(folder / name) == expected
        except OSError:
            well = False
        if not well:
            raise _DamagedError(f"{name} is missing or has changed")
    for shard in _shards(manifest) if SHARDS in manifest else ():  # which are read when they are opened
        try:
            well = (folder / "train" / shard.file).stat().st_size == shard.size
        except OSError:
            well = False
        if not well:
            raise _DamagedError(f"train/{shard.file} is missing or has changed")
    return manifest


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def quiet_datasets(progress: bool = False) -> Iterator[None]:
    """Silence the errors that datasets logs, because we report them, and its progress bars unless requested."""
    import datasets

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
