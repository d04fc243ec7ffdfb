"""The tracker that shows a run in a tracking library."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tqdm import tqdm

from distvae.runs.records import EpochRecord, read_metrics
from distvae.runs.trackers.libraries import LIBRARIES, Known, Library, Subject
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

    If the library fails, a line says so, and the run goes on without it. ``trackers.json`` keeps which run of the
    library this is and the last step that it has. A resumed run continues there: it leaves out the steps that the
    library has, because libraries cannot replace a step, and adds the earlier ones that it lacks.

    Args:
        name: of the library.
        subject: the run.
    """

    def __init__(self, name: str, subject: Subject):
        self._name, self._subject = name, subject
        self._queue: SimpleQueue[Callable[[Library], None] | None] = SimpleQueue()
        self._failed = False
        self._known = Known()
        self._step = 0  # of the last epoch
        for record in read_metrics(subject.folder):
            self.epoch(record)
            self.flush()
        self._thread = threading.Thread(target=self._work, name=f"tracking with {name}", daemon=True)
        self._thread.start()

    def epoch(self, record: EpochRecord) -> None:
        self._step = record.step
        self._submit(record.step, lambda library: library.log(record.scalars(), record.step))

    def warn(self, text: str, step: int) -> None:
        self._submit(step, lambda library: library.warn(text, step))

    def texts(self, title: str, texts: list[str], step: int) -> None:
        self._submit(step, lambda library: library.texts(title, texts, step))

    def flush(self) -> None:
        step = self._step

        def end_step(library: Library) -> None:
            library.flush(step)
            self._keep(Known(library.run, step))

        self._submit(step, end_step)

    def results(self, scores: Mapping[str, float], step: int, settings: Mapping[str, Any]) -> None:
        self._queue.put(lambda library: library.results(scores, step))

    def close(self, ending: Ending = "finished") -> None:
        self._queue.put(lambda library: library.close(ending))
        self._queue.put(None)
        patience = PATIENCE if ending == "finished" else SHORT_PATIENCE
        self._thread.join(patience)
        if self._thread.is_alive():
            self._give_up(f"has not finished within {patience:.0f} seconds")

    def _submit(self, step: int, action: Callable[[Library], None]) -> None:
        """Have the thread carry out an action unless the library has its step."""

        def unless_known(library: Library) -> None:
            if step > self._known.step:
                action(library)

        self._queue.put(unless_known)

    def _work(self) -> None:
        try:
            self._known = _read(self._subject.folder).get(self._name, Known())
            library = LIBRARIES[self._name](self._subject, self._known)
            self._keep(Known(library.run, self._known.step))
            for action in iter(self._queue.get, None):
                action(library)
        except (Exception, SystemExit) as error:
            # A library may have errors of any kind, and none of them is the run's.
            self._give_up(f"{type(error).__name__}: {error}")

    def _give_up(self, reason: str) -> None:
        if self._failed:
            return
        self._failed = True
        first = next(iter(reason.strip().splitlines()), reason)
        line = f"distvae: WARNING {self._subject.folder.name}: goes on without {self._name}: {first}"
        with contextlib.suppress(Exception):  # stderr may be closed
            tqdm.write(printable(line), file=sys.stderr)

    def _keep(self, known: Known) -> None:
        self._known = known
        folder = self._subject.folder
        with _FILE:
            content = {name: asdict(each) for name, each in (_read(folder) | {self._name: known}).items()}
            write_json(folder / _NAME, content)


def _read(folder: Path) -> dict[str, Known]:
    """Return what ``trackers.json`` holds, by the name of the library. A damaged file holds nothing."""
    path = folder / _NAME
    if not os.path.lexists(path):
        return {}
    with contextlib.suppress(UserError):
        return read_as(dict[str, Known], path, "what trackers keep")
    return {}
