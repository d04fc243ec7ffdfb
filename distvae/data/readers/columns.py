"""Columns of text, written to Arrow files while they are read.

Rows are flushed in batches, so memory use is bounded. A value is text, or missing (an empty sentence). Numbers and
booleans among texts are kept as written. Lists, objects, and columns without any text are errors.

Columns of labels and of groups may hold numbers and booleans only, or class names that the file numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from distvae.system.errors import UserError

if TYPE_CHECKING:  # see `data.corpus`
    from datasets import Dataset
    from tqdm import tqdm

TEXT_COLUMN = "text"

# Rows and characters held in memory before they are written.
BATCH, BATCH_CHARACTERS = 10_000, 1 << 24


@dataclass(frozen=True)
class Texts:
    """The rows of a source.

    Attributes:
        rows: one memory-mapped column, ``text``; null where a row has no text.
        where: the source, for messages.
        note: how the source was read if this is not obvious, else "".
    """

    rows: Dataset
    where: str
    note: str = ""
    labels: Dataset | None = None  # one column per column of labels, as text; null where a row has none
    groups: Dataset | None = None  # one column, ``text``


@dataclass(frozen=True)
class Wanted:
    """Which columns to read.

    Attributes:
        columns: of sentences, which are pooled.
        labels: columns of labels.
        group: column of groups.
    """

    columns: tuple[str, ...]
    labels: tuple[str, ...] = ()
    group: str | None = None


class Number(str):
    """A JSON number as written in the file."""


class Column:
    """A column of text, written to an Arrow file while it is read.

    Args:
        where: the source, for messages.
        path: of the Arrow file.
        key: the setting that names the column.
        bar: counts the rows that are written.

    Attributes:
        names: class names, if the file numbers them.
        rows: that are written.
    """

    def __init__(self, name: str, where: str, path: Path, key: str = "columns", bar: tqdm | None = None):
        self.name, self.where, self.key, self._bar = name, where, key, bar
        self.rows = 0
        self.names: list[str] | None = None
        self.number: str | None = None  # where the first number or boolean is
        self.has_text = False
        self._batch: list[str | None] = []
        self._characters = 0
        self._file = path.open("wb")
        self._writer = pa.ipc.new_stream(self._file, pa.schema([(TEXT_COLUMN, pa.large_string())]))

    @property
    def is_label(self) -> bool:
        """Whether the column holds labels."""
        return self.key == "label"

    @property
    def is_text(self) -> bool:
        """Whether the column holds sentences."""
        return self.key == "columns"

    def add(self, text: str | None) -> None:
        """Append a row. A label has no white space around it; an empty one is missing."""
        if not self.is_text and text is not None:
            text = text.strip() or None
        self._batch.append(text)
        self._characters += len(text) if text else 0
        self._flush_if_full()

    def extend(self, sentences: Sequence[str]) -> None:
        """Append rows of a column of sentences."""
        self._batch += sentences
        self._characters += sum(map(len, sentences))
        self._flush_if_full()

    def add_json(self, value: Any, place: str) -> None:
        """Append a JSON value.

        Raises:
            UserError: the value is a list or an object.
        """
        if isinstance(value, bool):
            self.number = self.number or place
            self.add("true" if value else "false")
        elif isinstance(value, Number):
            self.number = self.number or place
            self.add(str(value))
        elif isinstance(value, str):
            self.has_text = True
            self.add(value)
        elif value is None:
            self.add(None)
        else:
            kind = "a list" if isinstance(value, list) else "an object"
            raise not_text(f"{self.where}, {place}", self, kind)

    def add_arrow(self, array: pa.Array) -> None:
        """Append an Arrow array of text, dictionary-encoded text, or nulls; a label's may hold any single values.

        Raises:
            UserError: a text is not UTF-8.
        """
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if pa.types.is_floating(array.type):
            array = pc.if_else(pc.is_nan(array), None, array)  # NaN is what pandas writes for a missing number
        if self.names is not None:
            # A class of −1 is a missing label.
            inside = pc.and_(pc.greater_equal(array, 0), pc.less(array, len(self.names)))
            array = pa.array(self.names, pa.large_string()).take(pc.if_else(inside, array, None))
        array = array.cast(pa.large_string())
        try:
            array.validate(full=True)
        except pa.ArrowInvalid:  # the Parquet format requires UTF-8, but writers need not check it
            raise UserError(f"{self.where}: column {self.name} contains a sentence that is not UTF-8") from None
        if self.is_text:
            self._write(array)
        else:
            for value in array.to_pylist():
                self.add(value)

    def finish(self) -> None:
        """Write the remaining rows.

        Raises:
            UserError: all values are numbers or booleans.
        """
        if self.number and not self.has_text and self.is_text:
            raise not_text(self.where, self, f"numbers ({self.number})")
        self._flush()
        self._writer.close()
        self.close()

    def close(self) -> None:
        """Close the file, complete or not."""
        self._file.close()

    def _flush_if_full(self) -> None:
        if len(self._batch) >= BATCH or self._characters > BATCH_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        try:
            array = pa.array(self._batch, pa.large_string())
        except UnicodeEncodeError as error:
            broken = ascii(error.object[max(error.start - 30, 0) : error.end + 30])
            raise UserError(
                f"{self.where}: column {self.name} contains half of a surrogate pair, which is no character: {broken}"
            ) from None
        self._write(array)
        self._batch, self._characters = [], 0

    def _write(self, array: pa.Array) -> None:
        self._writer.write_batch(pa.record_batch([array], [TEXT_COLUMN]))
        self.rows += len(array)
        if self._bar is not None:
            self._bar.update(len(array))


def read_columns(name: str, where: str, wanted: Wanted, work: Path, fill: Callable[[list[Column]], str]) -> Texts:
    """Write the columns of a source, and open them; see ``write_columns``."""
    note = write_columns(name, where, wanted, work, fill)
    return open_columns(name, where, wanted, work, note)


def write_columns(name: str, where: str, wanted: Wanted, work: Path, fill: Callable[[list[Column]], str]) -> str:
    """Fill each column, in an Arrow file of its own.

    Args:
        name: prefix of the Arrow files.
        where: the source, for messages.
        wanted: names of columns; a repeated one is read once.
        work: folder of the Arrow files.
        fill: adds all rows to the columns and returns the note of ``Texts``.

    Raises:
        UserError: a column is named for two purposes, or columns differ in their numbers of rows.
    """
    from datasets.utils import tqdm  # late, see `data.corpus`

    columns: list[Column] = []
    try:
        with tqdm(desc=f"Reading {Path(where).name}", unit=" rows", delay=1) as bar:
            for i, (wish, key) in enumerate(_keys(wanted).items()):
                columns.append(Column(wish, where, _path(work, name, i), key, bar if i == 0 else None))
            note = fill(columns)
            for column in columns:
                column.finish()
    finally:
        for column in columns:
            column.close()
    if len({column.rows for column in columns}) > 1:
        listed = ", ".join(f"{column.rows:,} of {column.name}" for column in columns)
        raise UserError(f"{where}: columns differ in their numbers of rows: {listed}; write empty values too")
    return note


def open_columns(name: str, where: str, wanted: Wanted, work: Path, note: str) -> Texts:
    """Open the files of ``write_columns``, and concatenate the columns of sentences.

    Args: those of ``write_columns``, and what it returned.
    """
    import datasets

    keys = _keys(wanted)
    read = {column: datasets.Dataset.from_file(str(_path(work, name, i))) for i, column in enumerate(keys)}

    def repeated(column: str) -> Dataset:
        return datasets.concatenate_datasets([read[column]] * len(wanted.columns))

    labels = [repeated(label).rename_column(TEXT_COLUMN, label) for label in wanted.labels]
    return Texts(
        datasets.concatenate_datasets([read[column] for column in wanted.columns]),
        where,
        note,
        datasets.concatenate_datasets(labels, axis=1) if labels else None,
        repeated(wanted.group) if wanted.group is not None else None,
    )


def _path(work: Path, name: str, number: int) -> Path:
    return work / f"{name}-{number}.arrow"


def _keys(wanted: Wanted) -> dict[str, str]:
    """Return each wanted column once, with the setting that names it.

    Raises:
        UserError: a column is named for two purposes.
    """
    if len(set(wanted.labels)) < len(wanted.labels):
        raise UserError(f"data.label: names a column twice: {', '.join(wanted.labels)}")
    keys = dict.fromkeys(wanted.columns, "columns")
    for label in (*wanted.labels, *filter(None, [wanted.group])):
        key = "label" if label in wanted.labels else "group"
        if keys.setdefault(label, key) == "columns":
            raise UserError(f"data.{key}={label}: is a column of sentences; name another")
    return keys


def join(parts: Sequence[Texts], where: str) -> Texts:
    """Concatenate the rows of several files."""
    if len(parts) == 1:
        return parts[0]
    notes = dict.fromkeys(part.note for part in parts if part.note)
    labels = [part.labels for part in parts if part.labels is not None]
    groups = [part.groups for part in parts if part.groups is not None]
    import datasets

    return Texts(
        datasets.concatenate_datasets([part.rows for part in parts]),
        where,
        ", ".join(notes),
        datasets.concatenate_datasets(labels) if labels else None,
        datasets.concatenate_datasets(groups) if groups else None,
    )


def find_column(names: Sequence[str], column: Column, where: str, hint: str = "") -> int:
    """Return the index of a column.

    Args:
        hint: what else to do if there is none.

    Raises:
        UserError: no column, or more than one, has this name.
    """
    if column.name not in names:
        raise no_column(where, column, names, hint)
    if (count := names.count(column.name)) > 1:
        raise UserError(f"{where}: has {count} columns with the name {column.name}; rename the others")
    return names.index(column.name)


_ADVICE = {
    "columns": "set data.columns=[…] to those with {}",
    "label": "set data.label to one with labels",
    "group": "set data.group to one with groups",
}


def no_column(where: str, column: Column, names: Iterable[str], hint: str = "") -> UserError:
    """Return the error for a source that has only the columns ``names``."""
    names = list(names)
    if not names:
        return UserError(f"{where}: contains no sentences")
    listed = ", ".join(names[:20]) + (f" … ({len(names):,} in total)" if len(names) > 20 else "")
    advice = _ADVICE[column.key].format("sentences") + hint
    return UserError(f"{where}: has no column {column.name}, only {listed}; {advice}")


def not_text(where: str, column: Column, kind: str) -> UserError:
    """Return the error for a column that holds ``kind``."""
    expected, advice = "text" if column.is_text else f"{column.key}s", _ADVICE[column.key].format("text")
    return UserError(f"{where}: column {column.name} holds {kind}, not {expected}; {advice}")
