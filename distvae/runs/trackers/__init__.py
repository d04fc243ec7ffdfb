"""Trackers: the places that show a run's epochs. A tracker is a subclass of ``Tracker`` and a name in ``TRACKERS``."""

from __future__ import annotations

from pathlib import Path

from distvae.evaluation.liveness import LatentWatch
from distvae.runs.records import EpochRecord, read_metrics
from distvae.runs.trackers.console import Console
from distvae.runs.trackers.jsonl import JsonLines
from distvae.runs.trackers.tensorboard import TensorBoard
from distvae.runs.trackers.tracker import Tracker

# In this order they record an epoch. ``metrics.jsonl`` is first, because resuming and the reports read it.
TRACKERS: tuple[type[Tracker], ...] = (JsonLines, TensorBoard, Console)


class Trackers:
    """All trackers of a run, and the watch over its latent.

    Args:
        run, step: as for ``Tracker``.
    """

    def __init__(self, run: Path, step: int = 0):
        self._trackers = [tracker(run, step) for tracker in TRACKERS]
        self._watch = LatentWatch()
        for record in read_metrics(run):
            self._follow(record)

    def epoch(self, record: EpochRecord) -> bool:
        """Record an epoch. Warn if its latent has not been alive for some epochs.

        Returns:
            Whether the state of the latent has changed since the epoch before.
        """
        for tracker in self._trackers:
            tracker.epoch(record)
        former, latent = self._watch.state, record.latent
        self._follow(record)
        if latent is not None and self._watch.warns:
            epochs = f"for {self._watch.lifeless} epochs of {record.stage}"
            text = f"{epochs} the latent has been {latent.state}: {latent.advice}"
            for tracker in self._trackers:
                tracker.warn(text, record.step)
        return self._watch.state != former

    def _follow(self, record: EpochRecord) -> None:
        self._watch.follow(record.epoch, None if record.latent is None else record.latent.state)

    def texts(self, title: str, texts: list[str], step: int) -> None:
        """Show texts under a title."""
        for tracker in self._trackers:
            tracker.texts(title, texts, step)

    def flush(self) -> None:
        """Flush everything to disk. A checkpoint that is written after this resumes behind the records."""
        for tracker in self._trackers:
            tracker.flush()

    def close(self) -> None:
        """Close all trackers."""
        for tracker in self._trackers:
            tracker.close()
