"""Columns of files, read as strings into Arrow files.

Only the columns that are asked for are read, and no type is inferred: what other columns hold, or how they change from
row to row, does not matter. Files are read in pieces, so that memory stays bounded.

A value is text (or missing, which is an empty sentence). A number or a boolean of JSON among texts is read as it is
written. A list, an object, or a column without any text is an error.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from distvae.system.errors import UserError

TEXT_COLUMN = "text"
SUFFIXES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}

# Rows and characters that are held in memory at a time.
BATCH, BATCH_CHARACTERS = 10_000, 1 << 24
# Characters of JSON that are read at a time.
PIECE = 1 << 20
# Column names that are remembered for an error message.
NAMES = 1000

# Of a file that was appended to another it begins a line.
BOM = "\ufeff"
GZIP, UTF16 = b"\x1f\x8b", (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class Texts:
    """The rows of a source.

    Attributes:
        rows: one column, ``text``, memory-mapped; null where there is none.
        where: the source, for messages.
        note: how it was read where this is not obvious, else "".
    """

    rows: Dataset
    where: str
    note: str = ""


def read_file(path: Path, name: str, columns: Sequence[str], work: Path) -> Texts:
    """Read columns of a file, one below the other.

    Args:
        path: one of ``SUFFIXES``.
        name: of the Arrow files.
        work: a folder for them.

    Raises:
        UserError: it cannot be read as what its name says, has no such column, or holds something else than text.
    """
    fill = {
        ".txt": _fill_from_lines,
        ".jsonl": _fill_from_json_lines,
        ".json": _fill_from_json,
        ".csv": _fill_from_csv,
        ".tsv": _fill_from_csv,
        ".parquet": _fill_from_parquet,
    }[kind(path)]
    return _pool(name, str(path), columns, work, partial(fill, path))


def read_dataset(rows: Dataset, where: str, name: str, columns: Sequence[str], work: Path) -> Texts:
    """Read columns of a dataset of the hub; see ``read_file``."""

    def fill(stores: list[_Column]) -> str:
        _check_schema(rows.data.schema, where, stores)
        for table in rows.select_columns([s.name for s in stores]).with_format("arrow").iter(BATCH):
            for store in stores:
                for chunk in table.column(store.name).chunks:
                    store.add_arrow(chunk)
        return ""

    return _pool(name, where, columns, work, fill)


def kind(path: Path) -> str:
    """The suffix, without `.gz`."""
    return (path.with_suffix("") if is_gzip(path) else path).suffix.lower()


def is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def reason(error: BaseException) -> str:
    """The first line of what first went wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".splitlines()[0].strip(" :")


# Columns.


class _Column:
    """A column of text, written to an Arrow file as it is read."""

    def __init__(self, name: str, where: str, path: Path):
        self.name, self.where, self._path = name, where, path
        self.number: str | None = None  # where the first value stands that is a number or a boolean
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
        """Append a value of JSON.

        Raises:
            UserError: it is a list or an object.
        """
        if type(value) is str:
            self.has_text = True
        elif isinstance(value, _Number | bool):
            self.number = self.number or place
            value = {True: "true", False: "false"}.get(value) or str(value)
        elif value is not None:
            kind = "a list" if isinstance(value, list) else "an object"
            raise _not_text(f"{self.where}, {place}", self.name, kind)
        self.add(value)

    def add_arrow(self, array: pa.Array) -> None:
        """Append an array of a type that ``_holds_text``."""
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        array = array.cast(pa.large_string())
        try:
            array.validate(full=True)
        except pa.ArrowInvalid:  # Parquet promises that its texts are UTF-8, but no writer has to check
            raise UserError(f"{self.where}: column {self.name} holds a sentence that is not UTF-8") from None
        self._writer.write_batch(pa.record_batch([array], [TEXT_COLUMN]))

    def finish(self) -> Dataset:
        """Open what was written.

        Raises:
            UserError: all of its values are numbers or booleans.
        """
        if self.number and not self.has_text:
            raise _not_text(self.where, self.name, f"numbers ({self.number})")
        self._flush()
        self._writer.close()
        self.close()
        return Dataset.from_file(str(self._path))

    def close(self) -> None:
        """Close the file, whole or not."""
        self._file.close()

    def _flush(self) -> None:
        try:
            array = pa.array(self._batch, pa.large_string())
        except UnicodeEncodeError as error:
            broken = ascii(error.object[max(error.start - 30, 0) : error.end + 30])
            raise UserError(
                f"{self.where}: column {self.name} holds half of a surrogate pair, which is no character: {broken}"
            ) from None
        self._writer.write_batch(pa.record_batch([array], [TEXT_COLUMN]))
        self._batch, self._characters = [], 0


def _pool(name: str, where: str, columns: Sequence[str], work: Path, fill: Callable[[list[_Column]], str]) -> Texts:
    """Have the columns filled, each in its own Arrow file, and put them one below the other."""
    stores: list[_Column] = []
    try:
        for i, column in enumerate(dict.fromkeys(columns)):
            stores.append(_Column(column, where, work / f"{name}-{i}.arrow"))
        note = fill(stores)
        read = {store.name: store.finish() for store in stores}
    finally:
        for store in stores:
            store.close()
    return Texts(datasets.concatenate_datasets([read[column] for column in columns]), where, note)


def _no_column(where: str, column: str, names: Iterable[str]) -> UserError:
    names = list(names)
    if not names:
        return UserError(f"{where}: holds no sentence")
    listed = ", ".join(names[:20]) + (f" … ({len(names):,} in all)" if len(names) > 20 else "")
    return UserError(f"{where}: has no column {column}, but {listed}; say by data.columns=[…] which hold sentences")


def _not_text(where: str, column: str, kind: str) -> UserError:
    return UserError(f"{where}: column {column} holds {kind}, not text; say by data.columns=[…] which hold text")


# Files of Parquet.


def _fill_from_parquet(path: Path, stores: list[_Column]) -> str:
    try:
        file = pq.ParquetFile(path, pre_buffer=False)
        schema, rows = file.schema_arrow, file.metadata.num_rows
    except Exception as error:
        raise UserError(f"{path}: is not Parquet: {reason(error)}") from None
    with file:
        if rows == 0:
            raise UserError(f"{path}: holds no sentence")
        _check_schema(schema, str(path), stores)
        for batch in _parquet_batches(file, path, [store.name for store in stores]):
            for store in stores:
                store.add_arrow(batch.column(store.name))
    return ""


def _parquet_batches(file: pq.ParquetFile, path: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    try:
        # In this thread: one of Arrow's pool that still lives at the interpreter's exit may abort the program.
        yield from file.iter_batches(BATCH, columns=columns, use_threads=False)
    except Exception as error:
        raise UserError(f"{path}: cannot be read as Parquet: {reason(error)}") from error


def _check_schema(schema: pa.Schema, where: str, stores: list[_Column]) -> None:
    for store in stores:
        _find_column(schema.names, store.name, where)
        kind = schema.field(store.name).type
        if not _holds_text(kind):
            raise _not_text(where, store.name, str(kind))


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    known = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(is_known(kind) for is_known in known)


def _find_column(names: Sequence[str], column: str, where: str) -> int:
    """The place of a column.

    Raises:
        UserError: there is none of this name, or there are several.
    """
    if column not in names:
        raise _no_column(where, column, names)
    if names.count(column) > 1:
        raise UserError(f"{where}: has {names.count(column)} columns with the name {column}; rename the others")
    return names.index(column)


# Files of lines.


def _open(path: Path) -> BinaryIO:
    return gzip.open(path, "rb") if is_gzip(path) else path.open("rb")


def _pieces(path: Path, take: Callable[[io.TextIOWrapper], Iterable[str]]) -> Iterator[str]:
    """What ``take`` reads of a text file: UTF-8, unzipped, line ends as they are."""
    try:
        with _open(path) as file:
            for piece in take(io.TextIOWrapper(file, encoding="utf-8-sig", newline="")):
                if "\0" in piece:
                    raise _not_utf8(path)
                yield piece
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be unzipped: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _lines(path: Path) -> Iterator[str]:
    return _pieces(path, iter)


def _not_utf8(path: Path) -> UserError:
    """The error of a file that is not text in UTF-8, with the line that shows it."""
    number = 0
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.startswith(GZIP):
                return UserError(f"{path}: is gzip, not text; let its name end in .gz")
            if number == 1 and line.startswith(UTF16):
                return UserError(f"{path}, line 1: is not UTF-8, but UTF-16; convert it (iconv -f UTF-16 -t UTF-8)")
            if b"\0" in line:
                return UserError(f"{path}, line {number}: holds a NUL byte; is it text, and in UTF-8?")
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                break
    return UserError(f"{path}, line {number}: is not UTF-8; convert it (such as by iconv -f WINDOWS-1252 -t UTF-8)")


def _fill_from_lines(path: Path, stores: list[_Column]) -> str:
    for store in stores:
        _find_column([TEXT_COLUMN], store.name, str(path))
        for line in _lines(path):
            store.add(line.lstrip(BOM).rstrip("\r\n"))
    return ""


# JSON.


class _Number(str):
    """A number as it is written."""


class _Repeating(dict):
    """An object that has a key more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        self.repeated = {key for key, count in Counter(key for key, _ in pairs).items() if count > 1}


def _object(pairs: list[tuple[str, Any]]) -> dict:
    row = dict(pairs)
    return row if len(row) == len(pairs) else _Repeating(pairs)


_DECODER = json.JSONDecoder(parse_int=_Number, parse_float=_Number, parse_constant=_Number, object_pairs_hook=_object)
_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER_END = re.compile(r"[-+.0-9eE]*")


class _Rows:
    """JSON objects on their way into columns."""

    def __init__(self, where: str, stores: list[_Column]):
        self._where, self._stores = where, stores
        self._missing = {store.name for store in stores}
        self._names: dict[str, None] = {}

    def add(self, row: dict, place: str) -> None:
        for store in self._stores:
            _check_key(row, store.name, self._where, place)
            store.add_json(row.get(store.name), place)
        if self._missing:
            self._missing.difference_update(row)
            self._names.update(dict.fromkeys(itertools.islice(row, NAMES - len(self._names))))

    def finish(self) -> None:
        """See that each column was in some row."""
        for store in self._stores:
            if store.name in self._missing:
                raise _no_column(self._where, store.name, self._names)


def _fill_from_json_lines(path: Path, stores: list[_Column]) -> str:
    rows = _Rows(str(path), stores)
    for number, line in enumerate(_lines(path), 1):
        if line.isspace():
            continue
        try:
            row = _DECODER.decode(line.lstrip(BOM))
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: is not a JSON object")
        rows.add(row, f"line {number}")
    rows.finish()
    return ""


def _check_key(row: dict, key: str, where: str, place: str) -> None:
    if isinstance(row, _Repeating) and key in row.repeated:
        raise UserError(f"{where}, {place}: has the key {key} more than once")


def _fill_from_json(path: Path, stores: list[_Column]) -> str:
    """A list of objects or of texts, objects one after the other, or one object of columns."""
    rows = _Rows(str(path), stores)
    objects, columns = True, None
    for number, (in_list, value) in enumerate(_json_values(path), 1):
        if number == 1:
            objects = isinstance(value, dict) or not in_list
        if isinstance(value, dict) != objects or columns is not None:
            raise UserError(
                f"{path}: cannot be read as json: should hold an object a line, or a list of objects or of texts"
            )
        if not objects:
            value = {TEXT_COLUMN: value}
        elif not in_list and number == 1 and any(_is_column(value.get(store.name)) for store in stores):
            columns = value
            continue
        rows.add(value, f"row {number}")
    if columns is None:
        rows.finish()
        return ""
    for store in stores:
        _find_column(list(columns), store.name, str(path))
        _check_key(columns, store.name, str(path), "row 1")
        cells = columns[store.name]
        cells = (cells.values() if isinstance(cells, dict) else cells) if _is_column(cells) else [cells]
        for number, cell in enumerate(cells, 1):
            store.add_json(cell, f"row {number}")
    return ""


def _is_column(value: Any) -> bool:
    """Whether it is a list, or an object by row number, as pandas writes columns."""
    return isinstance(value, list) or (isinstance(value, dict) and all(key.isdigit() for key in value))


def _json_values(path: Path) -> Iterator[tuple[bool, Any]]:
    """The items of one list, or values one after the other; and whether they are in a list.

    Of the file no more is held than the value that is being read.
    """
    pieces = _pieces(path, lambda file: iter(partial(file.read, PIECE), ""))
    text, at, more = "", 0, True
    in_list, number, expected = False, 0, "value"
    while True:
        at = _SPACE.match(text, at).end()
        if at < len(text):
            if expected == "value" and number == 0 and not in_list and text[at] == "[":
                in_list, expected, at = True, "first", at + 1
                continue
            if in_list and text[at] == "]" and expected in ("first", "comma"):
                expected, at = "end", at + 1
                continue
            if expected == "comma" and text[at] == ",":
                expected, at = "value", at + 1
                continue
            failure = "more follows where it should end"
            if expected in ("first", "value"):
                try:
                    value, end = _DECODER.raw_decode(text, at)
                    # `0` is a whole number, but perhaps the beginning of `0.5`: of that `0.` may be here.
                    if _NUMBER_END.match(text, end).end() < len(text) or not more:
                        number, at, expected = number + 1, end, "comma" if in_list else "value"
                        yield in_list, value
                        continue
                except ValueError as error:
                    failure = getattr(error, "msg", str(error))
                except RecursionError:
                    more, failure = False, "it is nested too deeply"
            elif expected == "comma":
                more, failure = False, "a comma is missing"
            else:
                more = False
            if not more:
                raise UserError(f"{path}: cannot be read as json: row {number + 1}: {failure}")
        elif not more:
            break
        # Twice as much as before, so that a long value is not tried again for each of its pieces.
        rest, want = [text[at:]], max(len(text) - at, 1)
        while want > 0 and more:
            rest.append(next(pieces, ""))
            more, want = bool(rest[-1]), want - len(rest[-1])
        text, at = "".join(rest), 0
    if in_list and expected != "end":
        raise UserError(f"{path}: cannot be read as json: row {number + 1}: the list is not closed")


# Separated values.


@dataclass(frozen=True)
class _Layout:
    """How rows are written: as by RFC 4180, or (not ``quoted``) with quotes that are text."""

    separator: str
    spaced: bool  # a space follows each separator
    quoted: bool = True


def _fill_from_csv(path: Path, stores: list[_Column]) -> str:
    usual = "\t" if kind(path) == ".tsv" else ","
    layout, header = _header(path, [store.name for store in stores], usual)
    if layout.separator == "\t" and _has_bare_quotes(path, layout, len(header)):
        layout = replace(layout, quoted=False)
    places = [(store, _find_column(header, store.name, str(path))) for store in stores]
    separators = SEPARATORS[layout.separator]
    rows = _records(path, layout)
    next(rows)
    empty = True
    for line, row in rows:
        if len(row) != len(header):
            if _is_blank(row):
                continue
            raise UserError(
                f"{path}, line {line}: has {len(row)} fields where the header has {len(header)}; quote sentences that"
                f" hold {separators}"
                if len(row) > len(header)
                else f"{path}, line {line}: has {len(row)} of {len(header)} fields; write empty ones too"
            )
        empty = False
        for store, place in places:
            store.add(row[place])
    if empty:
        raise UserError(f"{path}: holds no sentence")
    notes = [f"columns separated by {separators}"] if layout.separator != usual else []
    notes += [] if layout.quoted else ["quotes read as part of the text"]
    return ", ".join(notes)


def _header(path: Path, columns: list[str], usual: str) -> tuple[_Layout, list[str]]:
    """The layout by which the first row has the wanted columns, the usual separator first, and that row."""
    headers, failures = {}, []
    # Columns after a space begin with one if it is not skipped, so that where skipping changes nothing it comes last.
    for separator, spaced in itertools.product(dict.fromkeys((usual, *SEPARATORS)), (False, True)):
        layout = _Layout(separator, spaced)
        try:
            _, row = next(_records(path, layout), (0, []))
        except UserError as error:
            failures.append(error)
            continue
        if not spaced and any(name.startswith(" ") for name in row[1:]):
            continue
        headers[layout] = [name.strip(" ") or f"Unnamed: {i}" for i, name in enumerate(row)]
    if not headers:
        raise failures[0]
    if not any(headers.values()):
        raise UserError(f"{path}: holds no sentence")
    for layout, header in headers.items():
        if set(columns) <= set(header):
            return layout, header
    return max(headers.items(), key=lambda item: len(item[1]))


def _records(path: Path, layout: _Layout) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, each with the number of its first line."""
    csv.field_size_limit(sys.maxsize)  # a document may be one field
    reader = csv.reader(
        _lines(path),
        delimiter=layout.separator,
        quoting=csv.QUOTE_MINIMAL if layout.quoted else csv.QUOTE_NONE,
        skipinitialspace=layout.spaced,
        strict=True,
    )
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise UserError(
                f"{path}, line {line}: is not CSV: {error}; quote a field that holds quotes, and double them"
            ) from None
        if row:
            yield line, row


def _has_bare_quotes(path: Path, layout: _Layout, width: int) -> bool:
    """Whether the quotes of a file of tabs are text: by the rules of quotes it is not well-formed, or lines that are
    rows by themselves would become one."""
    quoted, bare = (_count_rows(path, replace(layout, quoted=quoted), width) for quoted in (True, False))
    return quoted is None or (bare is not None and bare != quoted and width > 1)


def _count_rows(path: Path, layout: _Layout, width: int) -> int | None:
    """How many rows a file has. None: it is not well-formed."""
    count = 0
    try:
        for _, row in _records(path, layout):
            if len(row) != width and not _is_blank(row):
                return None
            count += 1
    except UserError:
        return None
    return count


def _is_blank(row: list[str]) -> bool:
    return len(row) == 1 and not row[0].strip()
