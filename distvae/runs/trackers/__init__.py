"""Trackers: the places that show a run's epochs. A tracker is a subclass of ``Tracker`` and a name in ``TRACKERS``."""

from __future__ import annotations

from pathlib import Path

from distvae.config.keys import flatten, keys_with
from distvae.config.schema import Config
from distvae.evaluation.liveness import LatentWatch
from distvae.evaluation.metrics import METRICS
from distvae.evaluation.scores import Scores
from distvae.runs.records import EpochRecord, read_metrics
from distvae.runs.trackers.console import Console
from distvae.runs.trackers.external import External
from distvae.runs.trackers.jsonl import JsonLines
from distvae.runs.trackers.libraries import LIBRARIES, Subject
from distvae.runs.trackers.tensorboard import TensorBoard
from distvae.runs.trackers.tracker import Ending, Tracker
from distvae.system.roles import Role

# These are always on. In this order they record an epoch: ``metrics.jsonl`` is first, because resuming and the reports
# read it.
TRACKERS: tuple[type[Tracker], ...] = (JsonLines, TensorBoard, Console)


_PLACES = keys_with(Config, Role.PLACE)


class Trackers:
    """All trackers of a run, and the watch over its latent.

    Args:
        run, step, resumed: as for ``Tracker``.
        config: names the tracking libraries that show the run, and holds its settings.
        group: the name of the sweep that the run is a trial of.
    """

    def __init__(
        self, run: Path, step: int = 0, config: Config | None = None, group: str | None = None, resumed: int = 0
    ):
        config = config or Config()
        self._trackers = [tracker(run, step, resumed) for tracker in TRACKERS]
        settings, tracking = dict(flatten(config)), config.tracking
        self._external = [
            External(name, Subject(run.absolute(), tracking.project, group, settings))
            for name in dict.fromkeys(tracking.trackers)
            if name in LIBRARIES
        ]
        self._trackers += self._external
        self._settings = {key: value for key, value in settings.items() if key not in _PLACES and group is None}
        self._step = step
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
        self._step = record.step
        self._watch.follow(record.epoch, None if record.latent is None else record.latent.state)

    def point(self, values: dict[str, float], step: int) -> None:
        """Show points of curves within an epoch."""
        for tracker in self._trackers:
            tracker.point(values, step)

    def texts(self, title: str, texts: list[str], step: int) -> None:
        """Show texts under a title."""
        for tracker in self._trackers:
            tracker.texts(title, texts, step)

    def flush(self) -> None:
        """Flush everything to disk. A checkpoint that is written after this resumes behind the records."""
        for tracker in self._trackers:
            tracker.flush()

    def results(self, scores: Scores) -> None:
        """Show the scores of the test sentences."""
        values = {f"test/{key}": metric.value(scores) for key, metric in METRICS.items()}
        found = {name: value for name, value in values.items() if value is not None}
        for tracker in self._trackers:
            tracker.results(found, self._step, self._settings)

    def close(self) -> None:
        """Close all trackers of a run that has finished."""
        for tracker in self._trackers:
            tracker.close()

    def end(self, ending: Ending) -> None:
        """Close all trackers of a run that has ended early."""
        for tracker in self._trackers:
            tracker.close(ending)
