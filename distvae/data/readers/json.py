"""JSON Lines and JSON, parsed row by row."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from distvae.data.readers.columns import TEXT_COLUMN, Column, Number, find_column, no_column
from distvae.data.readers.lines import BOM, PIECE, lines, pieces
from distvae.system.errors import UserError

Row = dict[str, Any]

# Column names to remember for an error message.
NAMES = 1000


class _Repeating(Row):
    """An object with repeated keys."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        self.repeated = {key for key, count in Counter(key for key, _ in pairs).items() if count > 1}


def _object(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    return row if len(row) == len(pairs) else _Repeating(pairs)


def _constant(name: str) -> Number | None:
    return None if name == "NaN" else Number(name)  # pandas writes NaN for a missing value


_DECODER = json.JSONDecoder(parse_int=Number, parse_float=Number, parse_constant=_constant, object_pairs_hook=_object)
_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"[-+.0-9eE]*")


class _Rows:
    """Adds JSON objects to columns and checks that each column occurs."""

    def __init__(self, where: str, columns: list[Column]):
        self._where, self._columns = where, columns
        self._missing = {column.name for column in columns}
        self._names: dict[str, None] = {}

    def add(self, row: Row, place: str) -> None:
        for column in self._columns:
            _check_key(row, column.name, self._where, place)
            column.add_json(row.get(column.name), place)
        if self._missing:
            self._missing.difference_update(row)
            self._names.update(dict.fromkeys(itertools.islice(row, NAMES - len(self._names))))

    def finish(self) -> None:
        """Raise UserError if a column was in no row."""
        for column in self._columns:
            if column.name in self._missing:
                raise no_column(self._where, column, self._names)


def read_json_lines(path: Path, columns: list[Column]) -> str:
    """Add a file of one JSON object per line to the columns.

    Raises:
        UserError: a line is not an object, or a column is missing or does not hold text.
    """
    rows = _Rows(str(path), columns)
    for number, line in enumerate(lines(path), 1):
        if line.isspace():
            continue
        row, why = None, ""
        try:
            row = _DECODER.decode(line.lstrip(BOM))
        except json.JSONDecodeError as error:
            why = f" ({error.msg}, at character {error.colno})"
        except (ValueError, RecursionError):
            why = " (it is nested too deeply)"
        if not isinstance(row, dict):
            raise UserError(
                f"{path}, line {number}: is not a JSON object{why}; a .jsonl file has one per line, and a .json file"
                " holds a list, or objects of several lines"
            )
        rows.add(row, f"line {number}")
    rows.finish()
    return ""


def read_json(path: Path, columns: list[Column]) -> str:
    """Add a JSON file to the columns: a list of objects or texts, a series of objects, or one object of columns.

    Raises:
        UserError: the file is malformed, or a column is missing or does not hold text.
    """
    rows = _Rows(str(path), columns)
    objects, table = True, None
    for number, (in_list, value) in enumerate(_values(path), 1):
        if number == 1:
            objects = isinstance(value, dict) or not in_list
        if isinstance(value, dict) != objects or table is not None:
            raise UserError(
                f"{path}: cannot be read as json: should hold one object per line, or a list of objects or strings"
            )
        if not objects:
            value = {TEXT_COLUMN: value}
        elif not in_list and number == 1 and any(_is_column(value.get(column.name)) for column in columns):
            table = value
            continue
        rows.add(value, f"row {number}")
    if table is None:
        rows.finish()
    else:
        _add_table(table, path, columns)
    return ""


def _add_table(table: Row, path: Path, columns: list[Column]) -> None:
    """Add an object whose values are columns."""
    for column in columns:
        find_column(list(table), column, str(path))
        _check_key(table, column.name, str(path), "row 1")
        cells = table[column.name]
        cells = (cells.values() if isinstance(cells, dict) else cells) if _is_column(cells) else [cells]
        for number, cell in enumerate(cells, 1):
            column.add_json(cell, f"row {number}")


def _check_key(row: Row, key: str, where: str, place: str) -> None:
    if isinstance(row, _Repeating) and key in row.repeated:
        raise UserError(f"{where}, {place}: has the key {key} more than once")


def _is_column(value: Any) -> bool:
    """Return whether a value is a list, or an object keyed by row number, as pandas writes columns."""
    return isinstance(value, list) or (isinstance(value, dict) and all(key.isdigit() for key in value))


def _values(path: Path) -> Iterator[tuple[bool, Any]]:
    """Yield the items of a list, or a series of values, each with whether it is in a list.

    Only the value being parsed is held in memory.
    """
    source = pieces(path, lambda file: iter(partial(file.read, PIECE), ""))
    text, at, more = "", 0, True
    in_list, number, expected = False, 0, "value"
    while True:
        at = _end(_SPACE, text, at)
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
            failure = "unexpected text after the end"
            if expected in ("first", "value"):
                try:
                    value, end = _DECODER.raw_decode(text, at)
                    # The text read so far may end inside a number: `0.` may become `0.5`.
                    if _end(_NUMBER, text, end) < len(text) or not more:
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
        # Double the text, so that a long value takes a number of attempts logarithmic in its length.
        rest, want = [text[at:]], max(len(text) - at, 1)
        while want > 0 and more:
            rest.append(next(source, ""))
            more, want = bool(rest[-1]), want - len(rest[-1])
        text, at = "".join(rest), 0
    if in_list and expected != "end":
        raise UserError(f"{path}: cannot be read as json: row {number + 1}: the list is not closed")


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Return where a pattern that may be empty ends."""
    found = pattern.match(text, at)
    return found.end() if found else at
