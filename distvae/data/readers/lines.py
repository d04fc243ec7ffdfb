"""Text files, gzipped or not, and plain text with a sentence per line."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from distvae.data.readers.columns import TEXT_COLUMN, Column, find_column
from distvae.system.errors import UserError

# May also start a line within a file that was concatenated from several.
BOM = "\ufeff"
GZIP, UTF16 = b"\x1f\x8b", (b"\xff\xfe", b"\xfe\xff")


def suffix(path: Path) -> str:
    """Return the suffix in lowercase, without ``.gz``."""
    return (path.with_suffix("") if is_gzip(path) else path).suffix.lower()


def is_gzip(path: Path) -> bool:
    """Return whether the name ends in ``.gz``."""
    return path.suffix.lower() == ".gz"


def read_lines(path: Path, columns: list[Column]) -> str:
    """Add each line of a file to the column ``text``, the only one that plain text has."""
    for column in columns:
        find_column([TEXT_COLUMN], column.name, str(path))
        for line in lines(path):
            column.add(line.lstrip(BOM).rstrip("\r\n"))
    return ""


def lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file; see ``pieces``."""
    return pieces(path, iter)


def pieces(path: Path, take: Callable[[io.TextIOWrapper], Iterable[str]]) -> Iterator[str]:
    """Yield what ``take`` reads from a UTF-8 file, decompressed if its name ends in ``.gz``, with line ends unchanged.

    Raises:
        UserError: the file cannot be read or unzipped, or is not UTF-8 text.
    """
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


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path, "rb") if is_gzip(path) else path.open("rb")


def _not_utf8(path: Path) -> UserError:
    """Return the error for a file that is not UTF-8 text, with the first line that shows it."""
    number = 0
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.startswith(GZIP):
                return UserError(f"{path}: is gzip, not text; rename it to end in .gz")
            if number == 1 and line.startswith(UTF16):
                return UserError(f"{path}, line 1: is UTF-16, not UTF-8; convert it (iconv -f UTF-16 -t UTF-8)")
            if b"\0" in line:
                return UserError(f"{path}, line {number}: contains a NUL byte; is it UTF-8 text?")
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                break
    return UserError(f"{path}, line {number}: is not UTF-8; convert it (for example, iconv -f WINDOWS-1252 -t UTF-8)")
