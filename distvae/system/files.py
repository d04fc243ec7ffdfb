"""Files and folders that are whole or not there, and that lead nowhere else.

What is written is written beside its place, flushed to disk and renamed into it. A folder's last file is its manifest,
by which a reader knows that all others are whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from distvae.system.errors import UserError, printable
from distvae.system.formats import check_format, stamped

Kind = TypeVar("Kind")

MANIFEST = "manifest.json"

# Bytes of a file that is read as a whole: a sparse or endless one would take all memory.
LARGEST = 2**30
# Bytes of a temporary folder's path that leave room for the name of a socket in it: a socket's path has 107, of which
# Python's multiprocessing takes 32.
LONGEST_FOR_SOCKETS = 75

_adapters: dict[object, TypeAdapter[Any]] = {}

# What is not yet in its place, or no longer.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")


@dataclass(frozen=True)
class Entry:
    """A file of a manifest."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What makes a folder whole: its files as they were written, and by whom."""

    start: int  # number of the start of the run that wrote it
    step: int  # optimizer steps of the run so far
    world_size: int
    files: dict[str, Entry]


@contextmanager
def whole_folder(target: Path, manifest: Manifest, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """A new folder that takes the place of ``target`` when the block ends well, and vanishes when it does not.

    Args:
        manifest: without its files, which are those that the block writes.
        check: called when all is on disk; may raise.
    """
    new, old = temporary(target), temporary(target)
    new.mkdir(parents=True)
    try:
        yield new
        paths = sorted(new.iterdir())
        entries = {path.name: Entry(path.stat().st_size, sha256(path)) for path in paths}
        (new / MANIFEST).write_text(as_json(stamped(asdict(replace(manifest, files=entries)))), encoding="utf-8")
        for path in paths:
            path.chmod((new / MANIFEST).stat().st_mode)  # safetensors lets nobody but the owner read
            flush(path)
        flush(new / MANIFEST)
        flush(new)
        check()
        if target.exists():
            os.rename(target, old)
        os.rename(new, target)
        flush(target.parent)
    finally:
        if old.exists() and not target.exists():  # cut short between the two
            os.rename(old, target)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def verify(folder: Path, *names: str) -> Manifest:
    """See that a folder's files are those that were written, and that the named ones are among them.

    Raises:
        UserError: one of them is missing, damaged, or lies elsewhere.
    """
    manifest = read_manifest(folder)
    for name in names:
        if name not in manifest.files:
            raise UserError(f"{folder / MANIFEST}: does not name {name}")
    for name, entry in manifest.files.items():
        path = inside(folder, name)
        with reading(path):
            size = path.stat().st_size
            whole = size == entry.size and sha256(path) == entry.sha256
        if not whole:
            what = "its SHA-256 is another" if size == entry.size else f"it has {size:,} bytes of {entry.size:,}"
            raise UserError(f"{path}: is not what was written: {what}")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest.

    Raises:
        UserError: it has none, or it is damaged.
    """
    return read_as(Manifest, folder / MANIFEST, "the manifest of a checkpoint or an export")


def inside(folder: Path, name: str) -> Path:
    """What a folder holds under a name: itself, or by a link to something else in the folder.

    Raises:
        UserError: it leads out of the folder.
    """
    path = folder / name
    try:
        stays = name == Path(name).name and path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a link to itself, a name that no file can have
        stays = False
    if not stays:
        raise UserError(f"{path}: leads out of {folder}, and is not read")
    return path


def write_json(path: Path, content: Any, check: Callable[[], None] = lambda: None) -> None:
    """Write JSON whole or not at all; see ``write_text``."""
    write_text(path, as_json(content), check)


def as_json(content: Any) -> str:
    """JSON for a person to read too."""
    return printable_json(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"


def printable_json(text: str) -> str:
    """The same JSON, with what a terminal should not get as it is (``printable``) written as escapes."""
    return "".join(c if c == "\n" or printable(c) == c else _json_escape(c) for c in text)


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def write_text(path: Path, text: str, check: Callable[[], None] = lambda: None) -> None:
    """Write text whole or not at all; see ``write_bytes``."""
    write_bytes(path, text.encode("utf-8"), check)


def write_bytes(path: Path, content: bytes, check: Callable[[], None] = lambda: None) -> None:
    """Write a file whole or not at all.

    Args:
        check: called when all is on disk; may raise.
    """
    new = temporary(path)
    try:
        new.write_bytes(content)
        flush(new)
        check()
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """See that a path is a file, and turn what the file system says of a read into a line.

    Raises:
        UserError: it cannot be read, or is a folder, a pipe or a device, which may never end.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise UserError(f"{path}: is {'a folder' if stat.S_ISDIR(mode) else 'a pipe or a device'}, not a file")
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_bytes(path: Path) -> bytes:
    """Read a file of a run's, a sweep's or an export's folder.

    Raises:
        UserError: it cannot be read, is no file, leads out of the folder by a link, or is far larger than any.
    """
    inside(path.parent, path.name)
    with reading(path):
        size = path.stat().st_size
        if size > LARGEST:
            raise UserError(f"{path}: has {size:,} bytes, and none that was written there has so many")
        return path.read_bytes()


def read_text(path: Path) -> str:
    """Read text; see ``read_bytes``."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: cannot be read: byte {error.start} is no UTF-8; it is damaged: restore it from a copy"
        ) from None


def read_json(path: Path) -> Any:
    """Read JSON; see ``read_bytes`` and ``parse_json``."""
    return parse_json(read_text(path), path)


def parse_json(text: str, source: str | Path) -> Any:
    """Plain values of JSON, all of whose numbers are finite and all of whose texts are.

    Args:
        source: where it comes from, for errors.

    Raises:
        UserError: it is something else.
    """
    try:
        content = json.loads(text, parse_constant=_finite, parse_float=_finite)
        if "\\ud" in text.lower():
            json.dumps(content, ensure_ascii=False).encode("utf-8")  # half a character can be written nowhere
        return content
    except UnicodeEncodeError:
        why = "it has a half of a character that needs two"
    except RecursionError:
        why = "it is nested too deeply"
    except ValueError as error:
        why = str(error)
    raise UserError(f"{source}: cannot be read as JSON: {why}; it is damaged: restore it from a copy")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not a number that it can hold")
    return value


def read_as(kind: type[Kind], path: Path, what: str) -> Kind:
    """Read JSON as a data class, or another type that pydantic knows; see ``read_json`` and ``check_as``."""
    return check_as(kind, read_json(path), path, what)


def check_as(kind: type[Kind], content: Any, source: str | Path, what: str) -> Kind:
    """Plain values of JSON as what they should be, by their types: no text is taken for a number, no 1 for `true`.

    Args:
        source: where they come from, for errors.
        what: they should be.

    Raises:
        FormatError: a newer version wrote them.
        UserError: they are not.
    """
    check_format(content, source)
    # Building an adapter takes milliseconds.
    adapter: TypeAdapter[Kind] = _adapters.get(kind) or _adapters.setdefault(kind, TypeAdapter(kind))
    try:
        return adapter.validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message, where = first["msg"].removeprefix("Value error, "), ".".join(map(str, first["loc"]))
        raise damaged(source, what, f"{where}: {message}" if where else message) from None


def damaged(source: str | Path, what: str, why: str) -> UserError:
    """The error of a file that holds what nobody wrote there."""
    return UserError(f"{source}: is not {what}: {why}; it was damaged or changed: restore it from a copy")


def flush(path: Path) -> None:
    """See that what was written to a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """A file's SHA-256, in hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the file system says of a write into a line.

    Raises:
        UserError: something at or below ``path`` cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors tells a full disk by an error of its own
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be written: {reason}; what was saved before stays as it is") from error


@contextmanager
def room_for_sockets() -> Iterator[None]:
    """Within, temporary folders lie where the sockets of Python's multiprocessing can: in /tmp if TMPDIR is too long.

    Raises:
        UserError: there is no such folder.
    """
    try:
        given = tempfile.gettempdir()
    except OSError as error:
        raise UserError(f"{error.strerror}; set TMPDIR to a folder that can be written") from None
    length = len(os.fsencode(given))
    if length <= LONGEST_FOR_SOCKETS:
        yield
        return
    if not os.access("/tmp", os.W_OK | os.X_OK):
        raise UserError(
            f"TMPDIR={given}: its {length} bytes leave no room for a socket's name, and /tmp cannot be written; set it"
            f" to a folder of at most {LONGEST_FOR_SOCKETS} bytes, or data.workers=1"
        )
    tempfile.tempdir = "/tmp"
    try:
        yield
    finally:
        tempfile.tempdir = given


def temporary(path: Path) -> Path:
    """A name beside ``path`` for what is not yet in its place, or no longer: ``sweep`` knows it."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def sweep(folder: Path) -> None:
    """Remove what a killed process had begun to write in a folder."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _TEMPORARY.fullmatch(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
