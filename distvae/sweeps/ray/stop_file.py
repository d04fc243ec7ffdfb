"""The stop file, by which a sweep asks its running trials, on any node, to save themselves.

The file exists from the beginning and is written in place: a network file system may hide a new file for a minute,
but shows new content of an existing one.
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

from distvae.system.signals import Signals

# Name of the file in the sweep's folder. Trials stop when it is not empty.
STOP = "stop"

_SECONDS_BETWEEN_READS = 0.5


def create(folder: Path) -> None:
    """Create the stop file, or empty that of an earlier attempt."""
    (folder / STOP).write_text("", encoding="ascii")


def request_stop(folder: Path, reason: str) -> None:
    """Ask the sweep's running trials to save themselves."""
    (folder / STOP).write_text(f"{reason}\n", encoding="ascii")


class StopFileWatcher(threading.Thread):
    """Watches a sweep's stop file within a ``with`` block, and has this process's run save itself."""

    def __init__(self, folder: Path, signals: Signals):
        super().__init__(name="stop-file watcher", daemon=True)
        self._path, self._signals, self._closed = folder / STOP, signals, threading.Event()

    def run(self) -> None:
        while not self._closed.wait(_SECONDS_BETWEEN_READS):
            with contextlib.suppress(OSError):  # a network file system may recover
                if self._path.read_text(encoding="ascii"):
                    self._signals.asked = "the sweep"
                    return

    def __enter__(self) -> StopFileWatcher:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
