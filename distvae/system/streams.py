"""Standard streams that cannot crash a program when they are closed, full, broken, or cannot encode a character.

Training writes its results to the run folder, so it drops a line that cannot be printed and continues. A command whose
product is its output fails instead (``strict``), with one line.
"""

from __future__ import annotations

import contextlib
import io
import locale
import os
import select
import sys
from typing import TYPE_CHECKING, TextIO

from distvae.system.errors import UserError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class ClosedError(Exception):
    """The reader of the standard output is gone, as after ``| head -1``."""


class _Descriptor(io.FileIO):
    """The lowest layer of a standard stream."""

    def __init__(self, number: int, strict: bool):
        super().__init__(number, "w", closefd=False)
        self._strict = strict

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            while (written := super().write(data)) is None:  # a full non-blocking pipe
                select.select([], [self], [])
        except OSError as error:
            if not self._strict:
                return memoryview(data).nbytes
            # Discard what is still buffered, or the interpreter would fail again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if isinstance(error, BrokenPipeError):
                raise ClosedError from None
            raise UserError(f"standard output: cannot be written: {error.strerror}") from None
        return written


def secure(strict: bool = False) -> None:
    """Make the standard streams safe to write to. A program calls this first.

    A stream that has been replaced, such as by a test, is left alone.

    Args:
        strict: raise ``ClosedError`` or ``UserError`` if the standard output cannot be written.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Otherwise the next file to be opened would get this number, and everything that libraries print. Writing
            # to a descriptor opened for reading fails, as it does on a closed one.
            _open_null(number, os.O_RDONLY if number == 0 or (strict and number == 1) else os.O_WRONLY)
    if sys.stdin is None and sys.__stdin__ is None:
        _replace("stdin", open(0, encoding="utf-8", closefd=False))  # noqa: SIM115
    if sys.stdout is sys.__stdout__:
        _replace("stdout", _writer(1, sys.__stdout__, strict))
    if sys.stderr is sys.__stderr__:
        _replace("stderr", _writer(2, sys.__stderr__, strict=False))


def _replace(name: str, stream: TextIO) -> None:
    for attribute in (name, f"__{name}__"):
        setattr(sys, attribute, stream)


def _open_null(number: int, mode: int) -> None:
    opened = os.open(os.devnull, mode)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    os.set_inheritable(number, True)


def _writer(number: int, former: io.TextIOWrapper | None, strict: bool) -> io.TextIOWrapper:
    """Return a text stream like Python's own on a ``_Descriptor``."""
    encoding, by_lines = locale.getpreferredencoding(False), number == 2
    if former is not None:
        encoding, by_lines = former.encoding, former.line_buffering or former.write_through
        # Libraries may have printed on import. If this cannot be written, it is dropped with the former stream.
        with contextlib.suppress(OSError):
            former.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(number, strict)),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=by_lines,
    )
