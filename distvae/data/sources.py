"""Where sentences come from: local files, standard input, or the hub. Captions are in ``captions``."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from distvae.config.schema import CAPTIONS, DataConfig
from distvae.data import hub, local
from distvae.data.digests import State, digests, state
from distvae.data.local import Files
from distvae.data.readers.columns import TEXT_COLUMN, Texts, Wanted
from distvae.data.readers.lines import compression, suffix
from distvae.data.readers.read import READERS, read_dataset, read_files
from distvae.system.errors import UserError, printable
from distvae.system.files import temporary, writing

STANDARD_INPUT = "-"
_STORED_INPUT = "stdin-{}.txt"

# A path that ends so is a file, and no dataset of the hub.
_SUFFIXES = (*READERS, *(f".{name}" for name in ("gz", "zst", "xz", "zip", "yaml", "doc", "docx", "pdf")))


def is_hub(data: DataConfig) -> bool:
    """Return whether ``data.path`` is a dataset of the hub: its id, where there is no such file or folder."""
    if data.path in hub.KNOWN:
        return True
    if data.path == CAPTIONS or not hub.is_id(data.path) or data.path.lower().endswith(_SUFFIXES):
        return False
    return not os.path.lexists(data.path)


def pinned(data: DataConfig, stored: str | None = None) -> DataConfig:
    """Return the settings with a fixed meaning: a commit of the hub, a file instead of standard input.

    Args:
        stored: the file that a run stored before; it is used if standard input is empty.

    Raises:
        UserError: the hub does not have the dataset or cannot be reached, or standard input is empty.
    """
    cache = expand("data.cache", data.cache)
    if data.path == STANDARD_INPUT:
        return replace(data, path=str(_store_input(cache, stored)))
    if is_hub(data) and not hub.is_pinned(data.path, data.revision):
        return replace(data, revision=hub.commit(data.path, data.revision, cache))
    return data


def is_stored_input(path: str) -> bool:
    """Return whether ``pinned`` has stored standard input under this path."""
    start, end = _STORED_INPUT.split("{}")
    return Path(path).name.startswith(start) and path.endswith(end)


def find_files(data: DataConfig) -> Files:
    """Return the files of each split, or of a single ``WHOLE_FILE``, or none if the source is not local.

    Raises:
        UserError: a file is missing, ambiguous or of an unknown kind, or a setting is not for local files.
    """
    if data.path == CAPTIONS or is_hub(data):
        return {}
    if data.path == STANDARD_INPUT:
        raise UserError(
            "data.path=-: only distvae/train.py reads standard input; write the sentences to a file and pass its path"
        )
    for name in ("subset", "revision"):
        if getattr(data, name) is not None:
            raise UserError(
                f"data.{name}: is for datasets of the hub, and data.path={data.path} is not one; leave it out"
            )
    try:
        return local.find(expand("data.path", data.path), data)
    except OSError as error:  # the name is too long, or a folder is not readable
        raise UserError(f"data.path={data.path}: cannot be read: {error.strerror}") from None


def origin(data: DataConfig, files: Files) -> dict[str, Any]:
    """Return what determines the rows, as plain values: each file's suffix and SHA-256, or the hub's commit."""
    if is_hub(data):
        return {"hub": data.path, "revision": hub.commit(data.path, data.revision, expand("data.cache", data.cache))}
    paths = [*local.every(files)]
    found = dict(zip(paths, digests(paths, expand("data.cache", data.cache)), strict=True))
    described = {name: [[*_kind(path), found[path]] for path in parts] for name, parts in files.items()}
    return {name: parts[0] if len(parts) == 1 else parts for name, parts in described.items()}


def _kind(path: Path) -> tuple[str, str | bool]:
    """Return the suffix of a file, and its compression as older versions wrote it."""
    packed = compression(path)
    return suffix(path), {"": False, ".gz": True}.get(packed, packed)


def states(files: Files) -> dict[Path, State]:
    """Return the metadata of each file."""
    return {path: state(path) for path in local.every(files)}


def expand(key: str, path: str) -> Path:
    """Resolve ``~`` in the value of a config key."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{key}={path}: no such user, so its home directory is unknown") from None


def load(data: DataConfig, files: Files, work: Path) -> dict[str, Texts]:
    """Read and concatenate the wanted columns of each split, or of ``WHOLE_FILE``. Valid and test may be missing.

    Args:
        work: folder of the Arrow files.

    Raises:
        UserError: a file does not match its suffix, or a column is missing or does not hold text.
    """
    default = hub.columns(data.path) if is_hub(data) else (TEXT_COLUMN,)
    wanted = Wanted(data.columns or default, data.labels, data.group)
    if is_hub(data):
        commit = hub.commit(data.path, data.revision, expand("data.cache", data.cache))
        found = hub.load(data.path, commit, data.subset, data.split)
        return {
            split: read_dataset(rows, f"{data.path}, {name}", split, wanted, work)
            for split, (name, rows) in found.items()
        }
    return {name: read_files(paths, name, wanted, work, data.workers) for name, paths in files.items()}


def _store_input(cache: Path, stored: str | None) -> str:
    """Copy standard input to a file named after its content, and return its path."""
    source = None if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer
    digest, size = hashlib.sha256(), 0
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
        new = temporary(cache / _STORED_INPUT)
        try:
            with new.open("wb") as file:
                while source is not None and (block := source.read(1 << 20)):
                    size += file.write(block)
                    digest.update(block)
            if size:
                path = cache / _STORED_INPUT.format(digest.hexdigest()[:16])
                new.replace(path)
                return str(path)
        finally:
            new.unlink(missing_ok=True)
    if stored is None:
        raise UserError("data.path=-: standard input has no sentences; pipe them, one per line: cat FILE | …")
    print(printable(f"data.path=-: standard input is empty; the run's sentences are {stored}"))
    return stored
