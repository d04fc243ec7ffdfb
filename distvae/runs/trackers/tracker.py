"""What every tracker can do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from distvae.runs.records import EpochRecord

# How a run has ended.
Ending = Literal["finished", "interrupted", "failed"]


class Tracker:
    """Shows a run's epochs in one place. Only the main process has trackers.

    A subclass overrides what it shows.

    Args:
        run: the run folder.
        step: the last step whose epoch is kept. Later epochs of earlier attempts are dropped, because training repeats
            them.
        resumed: the step that the run resumes from: ``step``, or one within the next epoch. Points before it are kept.
    """

    def __init__(self, run: Path, step: int, resumed: int = 0):
        """Open the tracker, and drop what is to be repeated."""

    def epoch(self, record: EpochRecord) -> None:
        """Record an epoch."""

    def point(self, values: Mapping[str, float], step: int) -> None:
        """Show points of curves within an epoch, by the names of the curves."""

    def warn(self, text: str, step: int) -> None:
        """Show a warning about the run."""

    def texts(self, title: str, texts: list[str], step: int) -> None:
        """Show texts, such as samples, under a title."""

    def flush(self) -> None:
        """Flush everything to disk. A checkpoint that is written after this resumes behind the records."""

    def results(self, scores: Mapping[str, float], step: int, settings: Mapping[str, Any]) -> None:
        """Show the scores of the test sentences.

        Args:
            scores: by name, such as ``test/nll``.
            settings: of the run, by dotted keys: those that its results depend on. Empty for a trial of a sweep, whose
                sweep shows them.
        """

    def close(self, ending: Ending = "finished") -> None:
        """Flush, and release files."""
