"""The tracker that writes a run's ``tensorboard`` folder."""

from __future__ import annotations

import time
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from distvae.runs.records import EpochRecord
from distvae.runs.trackers.tracker import Tracker
from distvae.system.files import flush
from distvae.system.markdown import escaped


class TensorBoard(Tracker):
    """Writes curves, warnings and texts as TensorBoard events."""

    def __init__(self, run: Path, step: int):
        self._folder = run / "tensorboard"
        self._await_turn()
        self._board = SummaryWriter(self._folder, purge_step=step + 1)

    def epoch(self, record: EpochRecord) -> None:
        for name, value in record.scalars().items():
            self._board.add_scalar(name, value, record.step)

    def warn(self, text: str, step: int) -> None:
        self._board.add_text("warnings", escaped(text), step)

    def texts(self, title: str, texts: list[str], step: int) -> None:
        # TensorBoard renders the text as Markdown.
        self._board.add_text(title, "\n".join(f"- {escaped(text)}" for text in texts), step)

    def flush(self) -> None:
        self._board.flush()
        for path in self._events()[-1:]:
            flush(path)

    def close(self) -> None:
        self._board.close()

    def _events(self) -> list[Path]:
        return sorted(self._folder.glob("events.out.tfevents.*"))

    def _await_turn(self) -> None:
        """Wait until the name of a new events file sorts after the existing ones.

        TensorBoard reads files in the order of their names, which begin with the time in seconds. A clock that is more
        than 5 seconds behind is not waited for.
        """
        seconds = [int(word) for path in self._events() if (word := path.name.split(".")[3]).isdecimal()]
        end = time.monotonic() + 5
        while seconds and int(time.time()) <= max(seconds) and time.monotonic() < end:
            time.sleep(0.02)
