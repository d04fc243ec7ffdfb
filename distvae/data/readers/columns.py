"""Columns of text, written to Arrow files while they are read.

Rows are flushed in batches, so memory use is bounded. A value is text, or missing (an empty sentence). Numbers and
booleans among texts are kept as written. Lists, objects, and columns without any text are errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Dataset

from distvae.system.errors import UserError

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


class Number(str):
    """A JSON number as written in the file."""


class Column:
    """A column of text, written to an Arrow file while it is read."""

    def __init__(self, name: str, where: str, path: Path):
        self.name, self.where, self._path = name, where, path
        self.number: str | None = None  # where the first number or boolean is
        self.has_text = False
        self._batch: list[str | None] = []
        self._characters = 0
        self._file = path.open("wb")
        self._writer = pa.ipc.new_stream(self._file, pa.schema([(TEXT_COLUMN, pa.large_string())]))

    def add(self, text: str | None) -> None:
        """Append a row."""
        self._batch.append(text)
        self._characters += len(text) if text else 0
        if len(self._batch) == BATCH or self._characters > BATCH_CHARACTERS:
            self._flush()

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
            raise not_text(f"{self.where}, {place}", self.name, kind)

    def add_arrow(self, array: pa.Array) -> None:
        """Append an Arrow array of text, dictionary-encoded text, or nulls.

        Raises:
            UserError: a text is not UTF-8.
        """
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        array = array.cast(pa.large_string())
        try:
            array.validate(full=True)
        except pa.ArrowInvalid:  # the Parquet format requires UTF-8, but writers need not check it
            raise UserError(f"{self.where}: column {self.name} contains a sentence that is not UTF-8") from None
        self._writer.write_batch(pa.record_batch([array], [TEXT_COLUMN]))

    def finish(self) -> Dataset:
        """Write the remaining rows and open the file.

        Raises:
            UserError: all values are numbers or booleans.
        """
        if self.number and not self.has_text:
            raise not_text(self.where, self.name, f"numbers ({self.number})")
        self._flush()
        self._writer.close()
        self.close()
        return Dataset.from_file(str(self._path))

    def close(self) -> None:
        """Close the file, complete or not."""
        self._file.close()

    def _flush(self) -> None:
        try:
            array = pa.array(self._batch, pa.large_string())
        except UnicodeEncodeError as error:
            broken = ascii(error.object[max(error.start - 30, 0) : error.end + 30])
            raise UserError(
                f"{self.where}: column {self.name} contains half of a surrogate pair, which is no character: {broken}"
            ) from None
        self._writer.write_batch(pa.record_batch([array], [TEXT_COLUMN]))
        self._batch, self._characters = [], 0


def read_columns(name: str, where: str, names: Sequence[str], work: Path, fill: Callable[[list[Column]], str]) -> Texts:
    """Fill each column, in an Arrow file of its own, and concatenate them.

    Args:
        name: prefix of the Arrow files.
        where: the source, for messages.
        names: column names; a repeated one is read once and concatenated again.
        work: folder of the Arrow files.
        fill: adds all rows to the columns and returns the note of ``Texts``.
    """
    columns: list[Column] = []
    try:
        for i, wanted in enumerate(dict.fromkeys(names)):
            columns.append(Column(wanted, where, work / f"{name}-{i}.arrow"))
        note = fill(columns)
        read = {column.name: column.finish() for column in columns}
    finally:
        for column in columns:
            column.close()
    return Texts(datasets.concatenate_datasets([read[wanted] for wanted in names]), where, note)


def find_column(names: Sequence[str], column: str, where: str) -> int:
    """Return the index of a column.

    Raises:
        UserError: no column, or more than one, has this name.
    """
    if column not in names:
        raise no_column(where, column, names)
    if names.count(column) > 1:
        raise UserError(f"{where}: has {names.count(column)} columns with the name {column}; rename the others")
    return names.index(column)


def no_column(where: str, column: str, names: Iterable[str]) -> UserError:
    """Return the error for a source that has only the columns ``names``."""
    names = list(names)
    if not names:
        return UserError(f"{where}: contains no sentences")
    listed = ", ".join(names[:20]) + (f" … ({len(names):,} in total)" if len(names) > 20 else "")
    return UserError(f"{where}: has no column {column}, only {listed}; set data.columns=[…] to those with sentences")


def not_text(where: str, column: str, kind: str) -> UserError:
    """Return the error for a column that holds ``kind``."""
    return UserError(f"{where}: column {column} holds {kind}, not text; set data.columns=[…] to those with text")


def reason(error: BaseException) -> str:
    """Return the first line of an error's root cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".splitlines()[0].strip(" :")
