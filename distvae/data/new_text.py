"""Text that a trained model reads: encoded with its vocabulary, none left out but blank lines.

``prepare`` writes a folder and ``load`` opens it, so that several processes share it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distvae.config.schema import CAPTIONS, DataConfig
from distvae.data import corpus, preparation, sources
from distvae.data.encoding import CHARACTERS, encode, share_of_unknown, tokenise
from distvae.data.readers.columns import TEXT_COLUMN
from distvae.data.sentences import Sentences
from distvae.data.splits import WHOLE_FILE
from distvae.data.vocabulary import Vocabulary
from distvae.system.errors import UserError

if TYPE_CHECKING:  # late, see `data.corpus`
    from datasets import Dataset

# Settings that say where the text is. No other applies, because nothing is sampled, left out or split.
READ = ("path", "subset", "revision", "split", "columns", "label", "workers", "cache")

# How a text without splits is called.
ALL = "all"

_MANIFEST = "new_text.json"


@dataclass(frozen=True)
class Part:
    """The sentences of a split.

    Attributes:
        texts: one column, ``text``. None: the sentences of a corpus, which keeps only ids.
        labels: a column for each of the labels; None without labels.
        unknown: share of words outside the vocabulary; None if that is closed.
    """

    sentences: Sentences
    texts: Dataset | None
    labels: Dataset | None
    unknown: float | None

    @property
    def label_names(self) -> list[str]:
        return [] if self.labels is None else list(self.labels.column_names)

    def shown(self, rows: slice, vocabulary: Vocabulary) -> list[str]:
        """Return sentences as text; those of a corpus have the tokens of unknown words."""
        if self.texts is None:
            return [vocabulary.text(ids) for ids in self.sentences[rows]]
        return [text.strip() for text in self.texts[rows][TEXT_COLUMN]]


def check_parts(name: str, parts: Mapping[str, Part], split: str, why: str) -> None:
    """Check that there are sentences of train and of a split.

    Args:
        name: whose sentences they are.
        why: both are needed, as the beginning of a sentence.

    Raises:
        UserError: one is missing.
    """
    if ALL in parts:
        raise UserError(f"{name}: {why}, and the sentences have no splits; pass a folder with a file for each")
    for wanted in ("train", split):
        if wanted not in parts:
            raise UserError(f"{name}: {why}, and the sentences have no {wanted}: they have {', '.join(parts)}")


@dataclass(frozen=True)
class NewText:
    """Text for a trained model.

    Attributes:
        parts: by split; a text without splits is ``ALL``.
        fingerprint: 16 hex digits that identify the source.
        notes: lines for the user on how it was read.
    """

    parts: dict[str, Part]
    fingerprint: str
    notes: tuple[str, ...]


def prepare(data: DataConfig, vocabulary: Vocabulary, folder: Path, progress: bool) -> None:
    """Read and encode a source.

    Args:
        folder: where to write; it exists and is empty.

    Raises:
        UserError: a setting does not apply, or the source cannot be read or has no sentences.
    """
    defaults = DataConfig()
    for name in (field.name for field in fields(data) if field.name not in READ):
        if getattr(data, name) != getattr(defaults, name):
            raise UserError(f"data.{name}: does not apply to text for a trained model; leave it out")
    if data.path == CAPTIONS:
        raise UserError("captions: are drawn, not read; for those of the run, use distvae evaluate")
    data = sources.pinned(data)
    files = sources.find_files(data)
    notes = {}
    with corpus.quiet_datasets(progress):
        for name, source in sources.load(data, files, folder).items():
            split = ALL if name == WHOLE_FILE else name
            found = preparation.kept(source.rows, data)
            rows, left_out = found.rows, found.left_out(data)
            if not len(rows):
                raise UserError(f"{source.where}: contains no sentences")
            texts = source.rows.select(rows)
            words = tokenise(texts, split, vocabulary.splitter, data.workers, folder, count=True)
            import datasets

            columns = [texts, encode(words, vocabulary, split, folder / f"{split}-ids.arrow")]
            datasets.concatenate_datasets([part.with_format(None) for part in columns], axis=1).save_to_disk(
                str(folder / split)
            )
            if source.labels is not None:
                source.labels.select(rows).save_to_disk(str(folder / corpus.LABELS / split))
            notes[split] = [note for note in (source.note, left_out and f"{left_out} left out") if note]
    origin = json.dumps([sources.origin(data, files), data.columns, data.split, data.subset]).encode()
    content = {"fingerprint": hashlib.sha256(origin).hexdigest()[:16], "notes": notes}
    (folder / _MANIFEST).write_text(json.dumps(content), encoding="utf-8")


def load(folder: Path, vocabulary: Vocabulary) -> NewText:
    """Open a folder that ``prepare`` wrote."""
    from datasets import Dataset

    content = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    parts = {}
    for split in content["notes"]:
        rows = Dataset.load_from_disk(str(folder / split), keep_in_memory=False)
        ids, characters = rows.data.column("ids"), rows.data.column(CHARACTERS).to_numpy().astype(np.int32)
        labels = folder / corpus.LABELS / split
        parts[split] = Part(
            Sentences(ids, characters),
            rows.select_columns([TEXT_COLUMN]),
            Dataset.load_from_disk(str(labels), keep_in_memory=False) if labels.exists() else None,
            None if vocabulary.unk == "closed" else share_of_unknown(ids, vocabulary),
        )
    notes = (f"{split}: {note}" for split, found in content["notes"].items() for note in found)
    return NewText(parts, content["fingerprint"], tuple(notes))


def of_corpus(prepared: corpus.Corpus) -> dict[str, Part]:
    """Return the splits of a corpus; of train in shards, a sample."""
    splits = {"train": prepared.train.in_memory(), "valid": prepared.valid, "test": prepared.test}
    return {
        split: Part(sentences, None, prepared.labels.get(split), prepared.unknown[split])
        for split, sentences in splits.items()
    }
