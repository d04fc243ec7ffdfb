"""The tracker that writes a run's ``tensorboard`` folder."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distvae.config.keys import flatten, keys_with, option_defaults
from distvae.config.schema import Config
from distvae.evaluation.metrics import METRICS
from distvae.runs.records import EpochRecord
from distvae.runs.trackers.tracker import Ending, Tracker
from distvae.system.files import flush
from distvae.system.markdown import escaped
from distvae.system.roles import Role

if TYPE_CHECKING:  # late: a sweep's own process needs no torch until a trial ends
    from tensorboard.compat.proto.summary_pb2 import Summary

# Suffix of the file with a run's line of TensorBoard's HPARAMS tab.
_SUFFIX = ".hparams"

_PLACES = keys_with(Config, Role.PLACE)
_DEFAULTS = {
    key: value for key, value in (option_defaults(Config) | dict(flatten(Config()))).items() if key not in _PLACES
}


class TensorBoard(Tracker):
    """Writes curves, warnings and texts as TensorBoard events."""

    def __init__(self, run: Path, step: int, resumed: int = 0):
        from torch.utils.tensorboard import SummaryWriter

        self._folder = run / "tensorboard"
        self._await_turn()
        self._board = SummaryWriter(self._folder, purge_step=max(step + 1, resumed))

    def epoch(self, record: EpochRecord) -> None:
        self.point(record.scalars(), record.step)

    def point(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def warn(self, text: str, step: int) -> None:
        self._board.add_text("warnings", escaped(text), step)

    def texts(self, title: str, texts: list[str], step: int) -> None:
        # TensorBoard renders the text as Markdown.
        self._board.add_text(title, "\n".join(f"- {escaped(text)}" for text in texts), step)

    def flush(self) -> None:
        self._board.flush()
        for path in self._events()[-1:]:
            flush(path)

    def results(self, scores: Mapping[str, float], step: int, settings: Mapping[str, Any]) -> None:
        if settings:
            run = self._folder.parent
            # Every run lists all keys and metrics: TensorBoard takes its columns from the one that it reads first.
            whole = {key: _plain(value) for key, value in (_DEFAULTS | dict(settings)).items()}
            experiment, _, _ = summaries(whole, dict.fromkeys((f"test/{key}" for key in METRICS), 0.0))
            _, start, end = summaries({key: _plain(value) for key, value in settings.items()}, scores)
            remove_hparams(run)
            write_session(run, (experiment, start, end), scores, step)

    def close(self, ending: Ending = "finished") -> None:
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


def _plain(value: Any) -> str | float:
    """Return a setting as TensorBoard takes it."""
    return value if isinstance(value, str | float | int) else "null" if value is None else ", ".join(map(str, value))


def summaries(values: Mapping[str, Any], metrics: Mapping[str, float]) -> tuple[Summary, Summary, Summary]:
    """Return the summaries of an experiment, and of the start and end of a session, for the HPARAMS tab."""
    from torch.utils.tensorboard.summary import hparams

    experiment, start, end = hparams(dict(values), dict(metrics))  # type: ignore[no-untyped-call]
    return experiment, start, end


def remove_hparams(run: Path) -> None:
    """Remove a run's line of the HPARAMS tab."""
    for path in (run / "tensorboard").glob(f"*{_SUFFIX}"):
        path.unlink()


def write_session(run: Path, parts: Iterable[Summary], metrics: Mapping[str, float], step: int) -> None:
    """Write a run's line of the HPARAMS tab to a file of its own in the run's folder of curves.

    Args:
        parts: see ``summaries``.
        metrics: also become points of curves.
    """
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(run / "tensorboard", filename_suffix=_SUFFIX) as writer:
        for part in parts:
            writer.file_writer.add_summary(part)
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
