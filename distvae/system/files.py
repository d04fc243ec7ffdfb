"""Atomic writes and checked reads of files and folders.

A file or folder is written beside its final path, flushed to disk and renamed into place. A folder's manifest, which is
written last, lists the size and SHA-256 of every other file.
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
from collections.abc import Callable, Iterable, Iterator
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

# Bytes of the largest file that is read whole: a sparse file could take all memory.
LARGEST = 2**30

_adapters: dict[object, TypeAdapter[Any]] = {}

# Names that ``temporary`` makes.
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")


@dataclass(frozen=True)
class Entry:
    """Size in bytes and SHA-256 of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of a folder as they were written, and the attempt that wrote them."""

    start: int  # number of the attempt
    step: int  # optimizer steps of the run so far
    world_size: int
    files: dict[str, Entry]


@contextmanager
def whole_folder(target: Path, manifest: Manifest, check: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield a new folder, which replaces ``target`` if the block succeeds and is removed if it raises.

    Args:
        manifest: its ``files`` are replaced by those that the block writes.
        check: called before anything is written, and when everything is on disk, before the folder is renamed; may
            raise to keep ``target``.
    """
    check()
    new, old = temporary(target), temporary(target)
    new.mkdir(parents=True)
    try:
        yield new
        paths = sorted(new.iterdir())
        entries = {path.name: Entry(path.stat().st_size, sha256(path)) for path in paths}
        (new / MANIFEST).write_text(as_json(stamped(asdict(replace(manifest, files=entries)))), encoding="utf-8")
        for path in paths:
            path.chmod((new / MANIFEST).stat().st_mode)  # safetensors makes files readable by their owner only
            flush(path)
        flush(new / MANIFEST)
        flush(new)
        check()
        if target.exists():
            os.rename(target, old)
        os.rename(new, target)
        flush(target.parent)
    finally:
        if old.exists() and not target.exists():  # interrupted between the two renames
            os.rename(old, target)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder at once: a reader finds it complete or absent. ``sweep`` removes what is left by a kill."""
    gone = temporary(folder)
    os.rename(folder, gone)
    shutil.rmtree(gone)


def verify(folder: Path, *names: str) -> Manifest:
    """Check a folder's files against its manifest, and that the manifest lists ``names``. Return the manifest.

    Raises:
        UserError: a file is missing, damaged, or outside the folder.
    """
    manifest = read_manifest(folder)
    for name in names:
        if name not in manifest.files:
            raise UserError(f"{folder / MANIFEST}: does not list {name}")
    for name, entry in manifest.files.items():
        path = inside(folder, name)
        with reading(path):
            size = path.stat().st_size
            whole = size == entry.size and sha256(path) == entry.sha256
        if not whole:
            what = "its SHA-256 differs" if size == entry.size else f"it has {size:,} bytes of {entry.size:,}"
            raise UserError(f"{path}: does not match {MANIFEST}: {what}")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest.

    Raises:
        UserError: the manifest is missing or damaged.
    """
    return read_as(Manifest, folder / MANIFEST, "the manifest of a checkpoint or an export")


def inside(folder: Path, name: str) -> Path:
    """Return the path of ``name`` in a folder.

    Raises:
        UserError: the name is a path, or a link to something outside the folder.
    """
    path = folder / name
    try:
        stays = name == Path(name).name and path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a link to itself, or an invalid name
        stays = False
    if not stays:
        raise UserError(f"{path}: leads out of {folder}; it is not read")
    return path


def write_json(path: Path, content: Any, check: Callable[[], None] = lambda: None) -> None:
    """Write JSON atomically; see ``write_bytes``."""
    write_text(path, as_json(content), check)


def save_json(path: Path, content: Any) -> None:
    """Write JSON to a file that a user named, in folders that need not exist.

    Raises:
        UserError: it cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)


def as_json(content: Any) -> str:
    """Return plain values as indented JSON."""
    return printable_json(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)) + "\n"


def printable_json(text: str) -> str:
    """Return the same JSON with unprintable characters escaped; see ``printable``."""
    return "".join(c if c == "\n" or printable(c) == c else _json_escape(c) for c in text)


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def write_text(path: Path, text: str, check: Callable[[], None] = lambda: None) -> None:
    """Write text atomically; see ``write_bytes``."""
    write_bytes(path, text.encode("utf-8"), check)


def write_bytes(path: Path, content: bytes, check: Callable[[], None] = lambda: None) -> None:
    """Write a file atomically: after a failure the old file, or none, is there.

    Args:
        check: called when the new file is on disk, before it is renamed; may raise to keep the old one.
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
    """Check that a path is a file, and turn an ``OSError`` of the block into a user error.

    Raises:
        UserError: the file cannot be read, or is a folder, a pipe or a device, which may never end.
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
        UserError: it cannot be read, is not a file, links to something outside its folder, or is too large.
    """
    inside(path.parent, path.name)
    with reading(path):
        size = path.stat().st_size
        if size > LARGEST:
            raise UserError(f"{path}: has {size:,} bytes, more than any file that distvae writes")
        return path.read_bytes()


def read_text(path: Path) -> str:
    """Read text; see ``read_bytes``."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: cannot be read: byte {error.start} is not UTF-8; it is damaged: restore it from a copy"
        ) from None


def read_json(path: Path) -> Any:
    """Read JSON; see ``read_bytes`` and ``parse_json``."""
    return parse_json(read_text(path), path)


def parse_json(text: str, source: str | Path) -> Any:
    """Parse JSON whose numbers are finite and whose strings are valid Unicode.

    Args:
        source: names the text in errors.

    Raises:
        UserError: the text is not such JSON.
    """
    try:
        content = json.loads(text, parse_constant=_finite, parse_float=_finite)
        if "\\ud" in text.lower():
            json.dumps(content, ensure_ascii=False).encode("utf-8")  # no file can hold half of a surrogate pair
        return content
    except UnicodeEncodeError:
        why = "a string has half of a surrogate pair"
    except RecursionError:
        why = "it is nested too deeply"
    except ValueError as error:
        why = str(error)
    raise UserError(f"{source}: cannot be read as JSON: {why}; it is damaged: restore it from a copy")


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not a finite number")
    return value


def read_as(kind: type[Kind], path: Path, what: str) -> Kind:
    """Read JSON as a data class, or another type that pydantic supports; see ``read_json`` and ``check_as``."""
    return check_as(kind, read_json(path), path, what)


def check_as(kind: type[Kind], content: Any, source: str | Path, what: str) -> Kind:
    """Validate plain values of JSON as ``kind``, strictly: a string is not a number, and 1 is not ``true``.

    Args:
        source: names the values in errors.
        what: describes ``kind`` in errors.

    Raises:
        FormatError: a newer version wrote them.
        UserError: they are not of this type.
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
    """Return the error for a file whose contents distvae did not write."""
    return UserError(f"{source}: is not {what}: {why}; it was damaged or changed: restore it from a copy")


def flush(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failed write in the block into a user error.

    Raises:
        UserError: something at or below ``path`` cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk by its own error
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be written: {reason}; earlier files are unchanged") from error


def output_file(path: Path, inputs: Iterable[Path] = ()) -> Path:
    """Check, before the work, that its result can be written to a file that a user named. Return where links lead.

    Args:
        inputs: files that are read.

    Raises:
        UserError: it is a folder, a pipe, a device or one of the inputs, or its folder cannot be written to.
    """
    with writing(path):
        real = Path(os.path.realpath(path))
        if real.exists() and not real.is_file():
            kind = "a folder" if real.is_dir() else "a pipe or a device"
            raise UserError(f"{path}: is {kind}, and should be a file to write")
        if any(real == Path(os.path.realpath(read)) for read in inputs):
            raise UserError(f"{path}: is a file that is read; name another one to write")
        folder = next(parent for parent in real.parents if parent.exists())
        with tempfile.TemporaryFile(dir=folder):
            pass
    return real


def temporary(path: Path) -> Path:
    """Return an unused path beside ``path``. ``sweep`` removes what is left there."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def sweep(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes have left in a folder."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if _TEMPORARY.fullmatch(path.name):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
