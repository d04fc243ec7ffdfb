"""What training writes to a run's folder: the main process has a ``RunWriter``, the others a ``NoWriter``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from distvae.config.schema import Config
from distvae.data.vocabulary import Vocabulary
from distvae.evaluation.scores import SentenceScores
from distvae.runs import checkpoints, status
from distvae.runs.attempts import Attempt, Lease, SupersededError
from distvae.runs.checkpoints import Checkpoint, Saver, Weights
from distvae.runs.records import EpochRecord, Saving, last_latent
from distvae.runs.results import Results, save_results, save_sentence_scores
from distvae.runs.trackers import Trackers
from distvae.runs.trackers.tracker import Ending
from distvae.system.errors import PeerError, UserError
from distvae.system.files import write_json, writing
from distvae.system.signals import InterruptedRun

if TYPE_CHECKING:
    from datasets import Dataset


# Fewest seconds between two points within an epoch.
POINT_SECONDS = 10.0


class NoWriter:
    """Writes nothing: the writer of every rank but the main one."""

    @property
    def overtaken(self) -> bool:
        """Whether another attempt has taken over the run."""
        return False

    @property
    def failed(self) -> bool:
        """Whether a write has failed. All ranks learn it at the next rank sync."""
        return False

    def begin(self, resumed: Checkpoint | None, vocabulary: Vocabulary) -> None:
        """Take over what earlier attempts have recorded and saved. From here on this attempt owns the folder."""

    def save(self, checkpoint: Checkpoint, began: float) -> None:
        """Write a checkpoint in a thread.

        Args:
            began: the time at which training stopped for it, by ``time.monotonic``.
        """

    def saving(self) -> Saving:
        """Return what the checkpoints since the last call have cost."""
        return Saving(0, 0.0, 0.0)

    def export(self, name: str, weights: Weights, step: int) -> None:
        """Export a model to the folder ``name``."""

    def record(self, record: EpochRecord, sample: Callable[[], dict[str, list[str]]]) -> None:
        """Record an epoch and the sentences that ``sample`` returns, by title."""

    def point(self, step: int, take: Callable[[], dict[str, float]]) -> None:
        """Show points within an epoch, which ``take`` returns. It is called only if the last ones are old enough."""

    def not_finite(self, content: dict[str, Any]) -> None:
        """Write ``not_finite.json``."""

    def conclude(self, results: Results, each: SentenceScores, labels: Dataset | None = None) -> None:
        """Write the results, with the labels of the sentences, and close the folder."""

    def wait(self) -> None:
        """Wait until all checkpoints are written."""

    def raise_failure(self) -> NoReturn:
        """Raise the reason why this attempt can no longer write."""
        raise PeerError("the main process reports the reason")

    def fail(self, error: BaseException) -> None:
        """Write to ``status.json`` why the run has ended early."""

    def release(self) -> None:
        """Mark this attempt as ended."""


class RunWriter(NoWriter):
    """Writes a run's folder as one attempt. A failed write is kept until the next rank sync.

    Args:
        group: the name of the sweep that the run is a trial of.
    """

    def __init__(self, run: Path, config: Config, attempt: Attempt, group: str | None = None):
        self._run, self._config, self._number, self._group = run, config, attempt.number, group
        self._end: Callable[[Ending], None] = lambda ending: None
        self._lease = Lease(run, attempt)
        self._saver = Saver(run, self._number, config.checkpoint.keep, self._lease.check)
        self._failure: UserError | None = None
        self._saves, self._stall = 0, 0.0
        self._shown = time.monotonic()  # when the last points were

    @property
    def overtaken(self) -> bool:
        return self._lease.lost

    @property
    def failed(self) -> bool:
        return self._failure is not None or self._saver.failed

    def begin(self, resumed: Checkpoint | None, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        recorded = step = 0
        if resumed is not None:
            recorded, step = resumed.state.recorded_step, resumed.state.step
            self._saver.save(resumed)
            self._saver.wait()
        with writing(self._run):
            self._lease.begin(recorded)
            self._trackers = Trackers(self._run, recorded, self._config, self._group, step)
            self._end = self._trackers.end
            for name in ("pretrained", "best"):
                checkpoints.remove_later_export(self._run / name, step)
            if resumed is not None and resumed.state.stage == "train" and resumed.best_weights:
                self._export("best", resumed.best_weights, resumed.state.step)

    def save(self, checkpoint: Checkpoint, began: float) -> None:
        self._write(lambda: self._saver.save(checkpoint))
        self._saves += 1
        self._stall += time.monotonic() - began

    def saving(self) -> Saving:
        saving = Saving(self._saves, self._stall, self._saver.write_seconds)
        self._saves, self._stall, self._saver.write_seconds = 0, 0.0, 0.0
        return saving

    def export(self, name: str, weights: Weights, step: int) -> None:
        self._write(lambda: self._export(name, weights, step))

    def record(self, record: EpochRecord, sample: Callable[[], dict[str, list[str]]]) -> None:
        def action() -> None:
            if self._trackers.epoch(record):
                status.write_status(self._run, "running", start=self._number, latent=record.latent)
            for title, sentences in sample().items():
                self._trackers.texts(title, sentences, record.step)
            self._trackers.flush()

        self._write(action)

    def point(self, step: int, take: Callable[[], dict[str, float]]) -> None:
        if time.monotonic() - self._shown >= POINT_SECONDS:
            self._write(lambda: self._trackers.point(take(), step))
            self._shown = time.monotonic()

    def not_finite(self, content: dict[str, Any]) -> None:
        self._write(lambda: write_json(self._run / "not_finite.json", content), anyway=True)

    def conclude(self, results: Results, each: SentenceScores, labels: Dataset | None = None) -> None:
        self._write(lambda: self._conclude(results, each, labels))

    def _conclude(self, results: Results, each: SentenceScores, labels: Dataset | None) -> None:
        self._saver.wait()
        self._saver.close()
        self._trackers.results(results.scores)
        self._trackers.close()
        self._end = lambda ending: None
        save_sentence_scores(self._run, each, self._lease.check, labels)
        save_results(self._run, results, self._lease.check)
        status.write_status(self._run, "finished", start=self._number, latent=results.latent)

    def wait(self) -> None:
        self._saver.wait()

    def raise_failure(self) -> NoReturn:
        self._lease.check()
        self._saver.wait()
        raise self._failure or PeerError("another process reports the reason")

    def fail(self, error: BaseException) -> None:
        interrupted = isinstance(error, (InterruptedRun, KeyboardInterrupt))
        with contextlib.suppress(OSError, SupersededError):  # report the first error
            self._lease.check()
            state: Ending = "interrupted" if interrupted else "failed"
            status.write_status(self._run, state, str(error) or None, self._number, last_latent(self._run))
            self._end(state)

    def release(self) -> None:
        self._saver.close()
        self._lease.release()

    def _export(self, name: str, weights: Weights, step: int) -> None:
        # A later attempt removes what this one had begun before; the check catches what is begun after that.
        checkpoints.export(
            self._run / name, weights, self._config, self._vocabulary, self._number, step, self._lease.check
        )

    def _write(self, action: Callable[[], None], anyway: bool = False) -> None:
        """Write, unless a write has failed: a checkpoint would resume behind a record that is missing."""
        if self._failure is not None and not anyway:
            return
        try:
            with writing(self._run):
                action()
        except UserError as error:
            self._failure = self._failure or error
