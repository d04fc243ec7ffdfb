"""Text files, compressed or not, and plain text with a sentence per line."""

from __future__ import annotations

import gzip
import io
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import pyarrow as pa

from distvae.data.readers.columns import TEXT_COLUMN, Column, find_column
from distvae.system.errors import UserError

# May also start a line within a file that was concatenated from several.
BOM = "\ufeff"
_XZ = b"\xfd7zXZ"
# First bytes of other kinds of files, their names, and what to do.
_OTHERS = {
    b"\xff\xfe\0\0": ("UTF-32, not UTF-8", "convert it (iconv -f UTF-32 -t UTF-8)"),
    b"\0\0\xfe\xff": ("UTF-32, not UTF-8", "convert it (iconv -f UTF-32 -t UTF-8)"),
    b"\xff\xfe": ("UTF-16, not UTF-8", "convert it (iconv -f UTF-16 -t UTF-8)"),
    b"\xfe\xff": ("UTF-16, not UTF-8", "convert it (iconv -f UTF-16 -t UTF-8)"),
    b"\x1f\x8b": ("gzip, not text", "rename it to end in .gz"),
    b"\x28\xb5\x2f\xfd": ("zstd, not text", "rename it to end in .zst"),
    _XZ: ("xz, not text", "rename it to end in .xz"),
    b"PAR1": ("Parquet, not text", "rename it to end in .parquet"),
    b"ARROW1": ("Arrow, not text", "rename it to end in .arrow"),
    b"PK\x03\x04": ("a zip archive or a spreadsheet, not text", "unpack it, or export it as .csv"),
}

COMPRESSIONS = (".gz", ".zst", ".xz")

# Characters to read at a time.
PIECE = 1 << 20

Piece = TypeVar("Piece", str, list[str])


def suffix(path: Path) -> str:
    """Return the suffix in lowercase, without that of a compression."""
    return (path.with_suffix("") if compression(path) else path).suffix.lower()


def compression(path: Path) -> str:
    """Return the suffix of a compression, or ""."""
    return path.suffix.lower() if path.suffix.lower() in COMPRESSIONS else ""


def read_lines(path: Path, columns: list[Column]) -> str:
    """Add each line of a file to the column ``text``, the only one that plain text has.

    With a column of labels, each line is ``label<TAB>text``.

    Raises:
        UserError: another column is wanted, or a line has no label.
    """
    labels = [column for column in columns if column.is_label]
    texts = [column for column in columns if not column.is_label]
    for column in (*texts, *labels[1:]):
        find_column([TEXT_COLUMN], column, str(path))
    number = 0
    for block in blocks(path):
        read = [line.lstrip(BOM).rstrip("\r\n") for line in block]
        if labels:
            for place, line in enumerate(read):
                label, tab, read[place] = line.partition("\t")
                if not tab and label.strip():
                    raise UserError(
                        f"{path}, line {number + place + 1}: has no tab; with data.label={labels[0].name}, a line of a"
                        " text file is label<TAB>sentence"
                    )
                labels[0].add(label)
        for column in texts:
            column.extend(read)
        number += len(block)
    return ""


def lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file; see ``pieces``."""
    return itertools.chain.from_iterable(blocks(path))


def blocks(path: Path) -> Iterator[list[str]]:
    """Yield the lines of a text file, about ``PIECE`` characters at a time; see ``pieces``."""
    return pieces(path, lambda file: iter(partial(file.readlines, PIECE), []))


def pieces(path: Path, take: Callable[[io.TextIOWrapper], Iterable[Piece]]) -> Iterator[Piece]:
    """Yield what ``take`` reads from a UTF-8 file, decompressed by its suffix, with line ends unchanged.

    Raises:
        UserError: the file cannot be read or decompressed, or is not UTF-8 text.
    """
    try:
        with _open(path) as file:
            for piece in take(io.TextIOWrapper(file, encoding="utf-8-sig", newline="")):
                if "\0" in (piece if isinstance(piece, str) else "".join(piece)):
                    raise _not_utf8(path)
                yield piece
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path}: cannot be unzipped: {error}") from None
    except OSError as error:
        if error.errno is None and compression(path) == ".zst":  # Arrow's
            raise UserError(f"{path}: cannot be unzipped: {error}") from None
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _open(path: Path) -> BinaryIO:
    packed = compression(path)
    if packed == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if packed == ".xz":
        _check_xz_end(path)
        return cast(BinaryIO, lzma.open(path, "rb", format=lzma.FORMAT_XZ))
    if packed == ".zst":
        if not pa.Codec.is_available("zstd"):
            raise UserError(f"{path}: this build of pyarrow has no zstd; install pyarrow from PyPI, or unpack the file")
        return cast(BinaryIO, io.BufferedReader(_Zstd(path)))
    return path.open("rb")


def _check_xz_end(path: Path) -> None:
    """Raise ``LZMAError`` if other bytes follow the compressed ones, which Python's reader would ignore."""
    with path.open("rb") as file:
        if file.read(len(_XZ)) != _XZ:
            return
        end, position = b"", file.seek(0, io.SEEK_END)
        while not end and position:  # a stream may be padded with zeros
            position = max(position - 4096, 0)
            file.seek(position)
            end = file.read(4096).rstrip(b"\0")
    if not end.endswith(b"YZ"):  # the format's footer
        raise lzma.LZMAError("it is cut, or other bytes follow its end")


class _Zstd(io.RawIOBase):
    """A zstd file, decompressed by Arrow."""

    def __init__(self, path: Path):
        self._file = pa.OSFile(str(path))
        self._stream = pa.CompressedInputStream(self._file, "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._stream.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._file.close()
        super().close()


def _not_utf8(path: Path) -> UserError:
    """Return the error for a file that is not UTF-8 text, with the first line that shows it."""
    number = 0
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                for start, (kind, remedy) in _OTHERS.items():
                    if line.startswith(start):
                        packed = compression(path)
                        return UserError(
                            f"{path}: is {kind}" + (f", after unpacking {packed}" if packed else f"; {remedy}")
                        )
            if b"\0" in line:
                return UserError(f"{path}, line {number}: contains a NUL byte; is it UTF-8 text?")
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                break
    return UserError(f"{path}, line {number}: is not UTF-8; convert it (for example, iconv -f WINDOWS-1252 -t UTF-8)")
