"""The folder in which a corpus is prepared, for temporary files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from distvae.data.workers import KilledError
from distvae.system.errors import UserError

# Ends the name of the folder of a preparation. Change it with what a step leaves there.
WORK = "shards2"


@contextlib.contextmanager
def workplace(cache: Path, name: str, large: bool) -> Iterator[Path]:
    """Yield a folder for temporary files: if they are large, the one of any other preparation of this corpus."""
    if large:
        with lasting_folder(cache / f".{name}-{WORK}") as work:
            yield work
    else:
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=cache, ignore_cleanup_errors=True) as work:
            yield Path(work)


@contextlib.contextmanager
def lasting_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder in which one process at a time works. It stays if that process or one of its own is killed, or
    the disk is full."""
    lock = _locked(folder)
    try:
        yield folder
    except KilledError:
        raise
    except UserError:
        _remove(folder)
        raise
    else:
        _remove(folder)
    finally:
        os.close(lock)


def _locked(folder: Path) -> int:
    """Create a folder unless it exists, and lock it, however long that takes. Return the lock's file descriptor.

    The lock is POSIX's, which forked processes do not share.
    """
    path = folder / "lock"
    while True:
        try:
            folder.mkdir(exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except (FileExistsError, FileNotFoundError):
            if folder.parent.is_dir() and not folder.is_file():  # another process has just removed it
                continue
            raise
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            print("data: another process prepares these sentences; waiting for it", file=sys.stderr, flush=True)
            fcntl.lockf(lock, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):  # the other process has finished, and removed the folder
            if path.stat().st_ino == os.fstat(lock).st_ino:
                return lock
        os.close(lock)


def _remove(folder: Path) -> None:
    """Remove a folder at once for other processes; ``corpus`` sweeps what is left if this one is killed."""
    removed = folder.with_name(f"{folder.name}_{uuid.uuid4().hex}")
    folder.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)
