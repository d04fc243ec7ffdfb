"""The sentences that a trained model reads: those of its training, or new text."""

from __future__ import annotations

import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from distvae.config.keys import keys_with
from distvae.config.load import apply_override, explain, parse_config, with_overrides
from distvae.config.schema import CAPTIONS, DataConfig
from distvae.config.yaml import ConfigError
from distvae.data import corpus, local, new_text, sources
from distvae.data.corpus import Corpus
from distvae.data.new_text import NewText
from distvae.data.sentences import Sentences, Shards
from distvae.data.splits import SPLITS
from distvae.data.vocabulary import Vocabulary
from distvae.distributed.runtime import Runtime
from distvae.runs.checkpoints import Export
from distvae.system.errors import UserError
from distvae.system.files import writing
from distvae.system.roles import Role

# Settings of the sentences of a training that a command may change: where they are, and which labels to read.
_OWN = keys_with(DataConfig, Role.PLACE, Role.SOURCE) | {"tokenizer_file", "label"}
# And these if they are elsewhere.
_OWN_ELSEWHERE = _OWN | {"subset", "split"}


def own_settings(found: Export, overrides: Sequence[str] = (), path: str | None = None) -> DataConfig:
    """Return where the sentences of the training are.

    Args:
        overrides: as ``data.cache=FOLDER``.
        path: of the sentences, if they were moved.

    Raises:
        ConfigError: an override would choose other sentences, is not of ``data``, unknown or out of range, or the
            settings are not for such a path.
    """
    for override in overrides:
        _check_key(override)
    data, trained = with_overrides(found.config, overrides, str(found.folder / "config.yaml")).data, found.config.data
    allowed = _OWN if data.path == trained.path else _OWN_ELSEWHERE
    for key in differing(data, trained):
        if key not in allowed:
            raise ConfigError(
                f"data.{key}: would choose other sentences or splits than those of the training; leave it out, or name"
                " other text as DATA"
            )
    if path in (None, data.path):
        return data
    return _replaced(data, f"--data {path}", path=path, subset=None, revision=None, split=None)


def differing(one: DataConfig, other: DataConfig) -> list[str]:
    """Return the keys in whose values two settings of sentences differ."""
    values, others = one.flat(), other.flat()
    return [key for key in values | others if values.get(key) != others.get(key)]


def with_labels(data: DataConfig, labels: Sequence[str]) -> DataConfig:
    """Return the settings of sentences whose labels are needed.

    Args:
        labels: columns, in place of those of ``data``; empty: those.

    Raises:
        UserError: there is no column of labels, or the source cannot have one.
    """
    if not labels:
        if not data.labels and data.path != CAPTIONS:
            raise UserError(f"data.path={data.path}: has no labels to probe for; name a column by --label COLUMN")
        return data
    return _replaced(data, f"--label {','.join(labels)}", label=tuple(labels))


def _replaced(data: DataConfig, what: str, **values: Any) -> DataConfig:
    """Return settings with other values; ``what`` names these in errors."""
    try:
        return replace(data, **values)
    except ValidationError as error:
        raise ConfigError(f"{what}: {explain(error, DataConfig)}") from None


def settings(path: str, overrides: Sequence[str], trained: DataConfig) -> DataConfig:
    """Return where new text is: the cache is that of the training, and no other setting.

    Raises:
        ConfigError: an override is not of ``data``, unknown, or out of range.
    """
    tree = {"data": {"path": path, "cache": trained.cache}}
    for override in overrides:
        _check_key(override)
        apply_override(tree, override)
    return parse_config(tree, path).data


def files_of(data: DataConfig) -> list[Path]:
    """Return the local files that sentences are read from; none of a source that cannot be read."""
    if data.path == sources.STANDARD_INPUT:
        return []
    try:
        return [*local.every(sources.find_files(data))]
    except UserError:
        return []


def _check_key(override: str) -> None:
    if not override.startswith("data."):
        raise ConfigError(f"{override}: is not a setting of data, such as data.columns=[sentence]")


def own_corpus(name: str, found: Export, data: DataConfig, runtime: Runtime) -> Corpus:
    """Open the corpus of the training, with its labels whichever ``data`` names. Every process must call this.

    Args:
        name: name of the export, for errors.
        data: see ``own_settings``.

    Raises:
        UserError: the model was trained on other sentences.
    """
    data = _trained(found, data)
    return _opened(name, found.vocabulary, data, runtime.on_main(lambda: _prepared(data)))


def own_corpus_alone(name: str, vocabulary: Vocabulary, data: DataConfig) -> Corpus:
    """Open the corpus of the training of a model with this vocabulary, in a process that works alone.

    Raises:
        UserError: as ``own_corpus``.
    """
    return _opened(name, vocabulary, data, _prepared(data))


def _trained(found: Export, data: DataConfig) -> DataConfig:
    return replace(data, label=found.config.data.label)


def _prepared(data: DataConfig, labels: tuple[str, ...] | None = None) -> Path:
    return corpus.prepare(data, sys.stderr.isatty(), labels)


def _opened(name: str, vocabulary: Vocabulary, data: DataConfig, folder: Path) -> Corpus:
    prepared = corpus.load(folder)
    if prepared.vocabulary.fingerprint != vocabulary.fingerprint:
        raise UserError(
            f"{name}: its vocabulary ({vocabulary.fingerprint}) is not that of {data.path}"
            f" ({prepared.vocabulary.fingerprint}): it was trained on other sentences"
        )
    return prepared


def own_text(name: str, found: Export, data: DataConfig, runtime: Runtime) -> NewText:
    """Open the sentences of the training in its splits, with labels that it need not have kept. Every process must call
    this.

    The fingerprint is that of the training, whichever labels are read.

    Args:
        name: name of the export, for errors.
        data: see ``own_settings``; its labels are read.

    Raises:
        UserError: the model was trained on other sentences, or these labels cannot be read beside them.
    """
    prepared = own_corpus(name, found, data, runtime)
    fingerprint = prepared.fingerprint
    if data.labels != found.config.data.labels:
        labelled = corpus.load(runtime.on_main(lambda: _prepared(_trained(found, data), data.labels)))
        if labelled.vocabulary.fingerprint != prepared.vocabulary.fingerprint or not all(
            same(getattr(labelled, split), getattr(prepared, split)) for split in SPLITS
        ):
            why = "a line of a text file is then a label, a tab and a sentence"
            if isinstance(prepared.train, Shards):
                why = "data.shard_size cut and sampled them in another way than sentences with labels are"
            raise UserError(
                f"data.label={','.join(data.labels)}: cannot be read beside the sentences that {name} was trained on:"
                f" {why}"
            )
        prepared = labelled
    return NewText(new_text.of_corpus(prepared), fingerprint, ())


def same(one: Sentences | Shards, other: Sentences | Shards) -> bool:
    """Return whether two splits have the same sentences, token by token, in the same order."""
    return len(one) == len(other) and all(map(np.array_equal, one, other))


@contextmanager
def new_sentences(data: DataConfig, found: Export, runtime: Runtime) -> Iterator[NewText]:
    """Read and encode new text for a model, in a folder of ``data.cache`` that lasts as long as the context.

    Every process must enter it; the main one reads.

    Raises:
        UserError: as ``new_text.prepare``.
    """
    cache = sources.expand("data.cache", data.cache)

    def begin() -> Path:
        with writing(cache):
            cache.mkdir(parents=True, exist_ok=True)
            # A name that ``corpus.prepare`` sweeps after a kill.
            folder = Path(tempfile.mkdtemp(prefix=f".{secrets.token_hex(8)}-", dir=cache))
        try:
            new_text.prepare(data, found.vocabulary, folder, progress=sys.stderr.isatty())
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return folder

    folder = runtime.on_main(begin)
    try:
        yield new_text.load(folder, found.vocabulary)
    finally:
        if runtime.is_main:
            shutil.rmtree(folder, ignore_errors=True)
