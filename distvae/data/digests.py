"""SHA-256 of source files, several at a time. Those of large files are kept in ``data.cache``, and computed again only
if a file's metadata have changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from distvae.system.cores import usable_cores
from distvae.system.files import reading, sha256, write_text

# Bytes from which on a file's digest is kept: those of smaller ones take less than a second.
LARGE = 1 << 28

# Seconds for which a file must have been unchanged: within less, some file systems give two versions the same time.
SETTLED = 10


class State(NamedTuple):
    """Metadata of a file that any write changes, even one that is undone."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def state(path: Path) -> State:
    """Return the metadata of a file.

    Raises:
        UserError: it cannot be read.
    """
    with reading(path):
        found = path.stat()
    return State(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def total_size(paths: Iterable[Path]) -> int:
    """Return the bytes of files.

    Raises:
        UserError: one cannot be read.
    """
    return sum(state(path).size for path in paths)


def digests(paths: Iterable[Path], cache: Path) -> list[str]:
    """Return the SHA-256 of each file in hex digits.

    Raises:
        UserError: a file cannot be read.
    """
    with ThreadPoolExecutor(usable_cores()) as pool:  # hashing releases the interpreter's lock
        return [*pool.map(partial(_digest, cache=cache), paths)]


def _digest(path: Path, cache: Path) -> str:
    before = state(path)
    if before.size < LARGE:
        return _computed(path)
    kept = cache / f".sha256-{hashlib.sha256(bytes(path.absolute())).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(kept.read_bytes())
        if found["state"] == [*before]:
            return str(found["sha256"])
    digest = _computed(path)
    if time.time() - before.changed_ns / 1e9 > SETTLED and state(path) == before:
        with contextlib.suppress(OSError):  # the cache is full or read-only
            cache.mkdir(parents=True, exist_ok=True)
            write_text(kept, json.dumps({"path": str(path), "state": before, "sha256": digest}))
    return digest


def _computed(path: Path) -> str:
    with reading(path):
        return sha256(path)
