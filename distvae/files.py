"""Files and folders that are whole or not there, and that lead nowhere else.

What is written is written beside its place, flushed to disk and renamed into it. A folder's last file is its manifest,
by which a reader knows that all others are whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from distvae.errors import UserError

MANIFEST = "manifest.json"

# Bytes of a temporary folder's path that leave room for the name of a socket in it: a socket's path has 107, of which
# Python's multiprocessing takes 32.
LONGEST_FOR_SOCKETS = 75

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
        (new / MANIFEST).write_text(as_json(asdict(replace(manifest, files=entries))), encoding="utf-8")
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
        try:
            size = path.stat().st_size
            whole = size == entry.size and sha256(path) == entry.sha256
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        if not whole:
            what = "its SHA-256 is another" if size == entry.size else f"it has {size:,} bytes of {entry.size:,}"
            raise UserError(f"{path}: is not what was written: {what}")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest.

    Raises:
        UserError: it has none, or it is damaged.
    """
    path = inside(folder, MANIFEST)
    try:
        return TypeAdapter(Manifest).validate_python(read_json(path))
    except ValidationError:
        raise UserError(f"{path}: is not the manifest of a checkpoint or an export") from None


def inside(folder: Path, name: str) -> Path:
    """What a folder holds under a name: itself, or by a link to something else in the folder.

    Raises:
        UserError: it leads out of the folder.
    """
    path = folder / name
    if name != Path(name).name or not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{path}: leads out of {folder}, and is not read")
    return path


def write_json(path: Path, content: Any, check: Callable[[], None] = lambda: None) -> None:
    """Write JSON whole or not at all; see ``write_text``."""
    write_text(path, as_json(content), check)


def as_json(content: Any) -> str:
    """JSON for a person to read too."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


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


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        UserError: the file is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


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
