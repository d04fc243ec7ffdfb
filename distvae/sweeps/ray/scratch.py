"""A sweep's own temporary folder, and the environment in which Ray must be imported.

The folder is removed at the end. The next sweep removes that of a driver that was killed: each driver locks its own
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

# A socket's path has at most 107 bytes, of which Ray's names take about 80. That leaves no room for TMPDIR.
ROOT = Path("/tmp")
PREFIX = "distvae-sweep-"

# Longest TMPDIR in bytes: the sockets of Python's multiprocessing add about 40.
LONGEST = 60

# Seconds after which a folder without a lock is abandoned: a driver locks its folder at once.
_NEW = 600.0


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Make a temporary folder that no other user may enter, and set the environment that Ray reads when imported.

    Raises:
        UserError: the folder cannot be made.
    """
    _remove_abandoned()
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
    # A sweep's own cluster has its own temporary folder, which Ray alone would leave open to everyone …
    os.environ["RAY_TMPDIR"] = str(folder)
    # … its own token, in a file that no other user can read …
    token = folder / "token"
    token.write_text(secrets.token_hex(32), encoding="ascii")
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    # … and listens only on the loopback interface, as Ray does where it accepts no other node. The variable is
    # undocumented, but Ray has no option for this.
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    # The processes of a trial do the same, except for torch's store, which has no such setting.
    os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}


def _lock(folder: Path) -> int:
    """Lock a folder for the life of this process. The lock file gets its name only once it is locked."""
    new = folder / "lock.new"
    lock = os.open(new, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    new.rename(folder / "lock")
    return lock


def _remove_abandoned() -> None:
    """Remove the folders of this user's sweeps whose driver has died."""
    for folder in ROOT.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's, or just removed
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            if not (folder / "lock").exists() and time.time() - folder.stat().st_mtime > _NEW:
                shutil.rmtree(folder, ignore_errors=True)  # recreated by a process that outlived its driver
                continue
            lock = os.open(folder / "lock", os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while the driver lives
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
