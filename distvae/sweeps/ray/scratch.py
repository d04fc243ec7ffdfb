"""A sweep's own temporary folder, and the environment that Ray has to be imported in.

It is removed at the end. What a driver that was killed left is removed by the next one: each holds a lock on its own
folder for as long as its process lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from distvae.system.errors import UserError

# A socket's path has 107 bytes at most, of which Ray's names take some 80. So TMPDIR is not where its folder can be.
ROOT = Path("/tmp")
PREFIX = "distvae-sweep-"

# What TMPDIR can have: the sockets of Python's multiprocessing add some 40 bytes.
LONGEST = 60

# Seconds in which a driver has locked its folder, and more.
_NEW = 600.0


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder that nobody else may enter, in an environment made for Ray, which reads it when imported.

    Raises:
        UserError: there can be no such folder.
    """
    _sweep()
    try:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=ROOT))
        lock = _lock(folder)
    except OSError as error:
        raise UserError(
            f"{ROOT}: a sweep needs a temporary folder there, where the paths of Ray's sockets are short:"
            f" {error.strerror}"
        ) from None
    try:
        _set_environment(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _set_environment(folder: Path) -> None:
    if len(os.fsencode(tempfile.gettempdir())) > LONGEST:
        print(
            f"TMPDIR = {tempfile.gettempdir()}: is too long for the paths of sockets; this sweep uses {folder}",
            file=sys.stderr,
        )
        os.environ["TMPDIR"], tempfile.tempdir = str(folder), None
    if os.environ.get("RAY_ADDRESS"):
        return
    # A cluster of this sweep's own has a token of its own, in a file that nobody else can read …
    token = folder / "token"
    token.write_text(secrets.token_hex(32), encoding="ascii")
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    # … and listens on the loopback interface alone, as Ray does where it takes no other node in.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    # So do the processes of a trial of several, but for torch's store, which has no such setting.
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def _lock(folder: Path) -> int:
    """Lock a folder for the life of this process. Under its name the lock is there only once it is held."""
    new = folder / "lock.new"
    lock = os.open(new, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    new.rename(folder / "lock")
    return lock


def _sweep() -> None:
    """Remove the folders of this user's sweeps whose driver is dead."""
    for folder in ROOT.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another's, or one that has just been removed
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            if not (folder / "lock").exists() and time.time() - folder.stat().st_mtime > _NEW:
                shutil.rmtree(folder, ignore_errors=True)  # what a process of a removed one has made again
                continue
            lock = os.open(folder / "lock", os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # or its driver lives
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
