"""CSV, TSV, and files with other separators, which are detected from the header."""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from distvae.data.readers.columns import Column, find_column
from distvae.data.readers.lines import lines, suffix
from distvae.system.errors import UserError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}

NO_HEADER = ", or write the names of the columns into the first line if they are missing"


@dataclass(frozen=True)
class Layout:
    """How rows are written: as in RFC 4180, or (if not ``quoted``) with quotes that are part of the text."""

    separator: str
    spaced: bool  # a space follows each separator
    quoted: bool = True


def read_csv(path: Path, columns: list[Column]) -> str:
    """Add the rows of a file to the columns; return what is unusual about its layout.

    Raises:
        UserError: the file is malformed or empty, or a column is missing or ambiguous.
    """
    usual = "\t" if suffix(path) == ".tsv" else ","
    layout, header = _header(path, [column.name for column in columns], usual)
    if layout.separator == "\t" and _has_bare_quotes(path, layout, len(header)):
        layout = replace(layout, quoted=False)
    places = [(column, find_column(header, column, str(path), NO_HEADER)) for column in columns]
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
                f" contain {separators}"
                if len(row) > len(header)
                else f"{path}, line {line}: has {len(row)} of {len(header)} fields; write empty ones too"
            )
        empty = False
        for column, place in places:
            column.add(row[place])
    if empty:
        raise UserError(f"{path}: contains no sentences")
    notes = [f"columns separated by {separators}"] if layout.separator != usual else []
    notes += [] if layout.quoted else ["quotes read as part of the text"]
    return ", ".join(notes)


def _header(path: Path, columns: list[str], usual: str) -> tuple[Layout, list[str]]:
    """Return the first layout under which the header has the wanted columns, and that header.

    The usual separator is tried first. If no layout has them all, the one with the most columns is returned.
    """
    headers: dict[Layout, list[str]] = {}
    failures = []
    # Try without skipping spaces first; a layout whose column names then start with a space is rejected.
    for separator, spaced in itertools.product(dict.fromkeys((usual, *SEPARATORS)), (False, True)):
        layout = Layout(separator, spaced)
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
        raise UserError(f"{path}: contains no sentences")
    for layout, header in headers.items():
        if set(columns) <= set(header):
            return layout, header
    return max(headers.items(), key=lambda item: len(item[1]))


def _records(path: Path, layout: Layout) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, each with the number of its first line."""
    csv.field_size_limit(sys.maxsize)  # a field may be a whole document
    reader = csv.reader(
        lines(path),
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


def _has_bare_quotes(path: Path, layout: Layout, width: int) -> bool:
    """Return whether quotes in a tab-separated file are part of the text.

    They are if the file is malformed under the quoting rules, or if quoting would merge lines that are valid rows.
    """
    quoted, bare = (_count_rows(path, replace(layout, quoted=quoted), width) for quoted in (True, False))
    return quoted is None or (bare is not None and bare != quoted and width > 1)


def _count_rows(path: Path, layout: Layout, width: int) -> int | None:
    """Count the rows of a file; return None if it is malformed."""
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
