"""The tracker that shows a run in a tracking library."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tqdm import tqdm

from distvae.runs.records import EpochRecord, read_metrics
from distvae.runs.trackers.libraries import LIBRARIES, Library, Subject
from distvae.runs.trackers.tracker import Ending, Tracker
from distvae.system.errors import UserError, printable
from distvae.system.files import read_as, write_json

# The most seconds that a finished run waits for a library, and one that has ended early.
PATIENCE, SHORT_PATIENCE = 60.0, 10.0

_NAME = "trackers.json"
# Each library has a thread, and all write the same file.
_FILE = threading.Lock()


class External(Tracker):
    """Shows a run in a tracking library, from a thread of its own: training never waits for a network.

    If the library fails, a warning is printed, and the run continues without it. ``trackers.json`` keeps the names of
    the runs in the libraries. A resumed run continues there: it sends the records in ``metrics.jsonl`` that the library
    lacks.

    Args:
        name: of the library.
        subject: the run.
    """

    def __init__(self, name: str, subject: Subject):
        self._name, self._subject = name, subject
        self._queue: SimpleQueue[Callable[[Library], None] | None] = SimpleQueue()
        self._failed = False
        self._step = 0  # of the last epoch
        for record in read_metrics(subject.folder):
            self.epoch(record)
            self.flush()
        self._thread = threading.Thread(target=self._work, name=f"tracking with {name}", daemon=True)
        self._thread.start()

    def epoch(self, record: EpochRecord) -> None:
        self._step = record.step
        self._submit(record.step, lambda library: library.log(_finite(record.scalars()), record.step))

    def warn(self, text: str, step: int) -> None:
        self._submit(step, lambda library: library.warn(text, step))

    def texts(self, title: str, texts: list[str], step: int) -> None:
        self._submit(step, lambda library: library.texts(title, texts, step))

    def flush(self) -> None:
        step = self._step
        self._submit(step, lambda library: library.flush(step))

    def results(self, scores: Mapping[str, float], step: int, settings: Mapping[str, Any]) -> None:
        self._queue.put(lambda library: library.results(_finite(scores), step))

    def close(self, ending: Ending = "finished") -> None:
        self._queue.put(lambda library: library.close(ending))
        self._queue.put(None)
        patience = PATIENCE if ending == "finished" else SHORT_PATIENCE
        self._thread.join(patience)
        if self._thread.is_alive():
            self._give_up(f"it has not finished within {patience:.0f} seconds")

    def _submit(self, step: int, action: Callable[[Library], None]) -> None:
        """Have the thread carry out an action unless the library has its step."""

        def unless_known(library: Library) -> None:
            if step > library.step:
                action(library)

        if not self._failed:
            self._queue.put(unless_known)

    def _work(self) -> None:
        try:
            library = LIBRARIES[self._name](self._subject, _read(self._subject.folder).get(self._name, {}))
            self._keep(library.run)
            for action in iter(self._queue.get, None):
                action(library)
        except UserError as error:
            self._give_up(str(error))
        except (Exception, SystemExit) as error:
            # A library may have errors of any kind, and none of them is the run's.
            self._give_up(f"{type(error).__name__}: {error}")

    def _give_up(self, reason: str) -> None:
        if self._failed:
            return
        self._failed = True
        first = next(iter(reason.strip().splitlines()), reason)
        line = (
            f"distvae: WARNING {self._subject.folder.name}: training continues without {self._name}: {first}; the next"
            " attempt at this run sends what is missing"
        )
        with contextlib.suppress(Exception):  # stderr may be closed
            tqdm.write(printable(line), file=sys.stderr)

    def _keep(self, run: dict[str, str]) -> None:
        folder = self._subject.folder
        with _FILE:
            write_json(folder / _NAME, _read(folder) | {self._name: run})


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _read(folder: Path) -> dict[str, dict[str, str]]:
    """Return what ``trackers.json`` holds, by the name of the library. A damaged file holds nothing."""
    path = folder / _NAME
    if not os.path.lexists(path):
        return {}
    with contextlib.suppress(UserError):
        return read_as(dict[str, dict[str, str]], path, "what trackers keep")
    return {}
