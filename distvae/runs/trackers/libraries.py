"""The tracking libraries, through Accelerate's trackers.

A library is a subclass of ``Library`` and a name in ``LIBRARIES``. Each is used from one thread only.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from distvae.runs.trackers.tracker import Ending
from distvae.system.errors import UserError
from distvae.system.settings import Count

# Packages that provide a library: one of them is enough.
PACKAGES = {"wandb": ("wandb",), "mlflow": ("mlflow-skinny", "mlflow"), "trackio": ("trackio",)}

# Most characters of a tag of MLflow.
_LONGEST_TAG = 5000

# Trackio sends from a thread of its own, twice a second.
_TRACKIO_SECONDS = 1.0


@dataclass(frozen=True)
class Subject:
    """The run that is shown."""

    folder: Path
    project: str
    group: str | None  # the name of the sweep that it is a trial of
    settings: Mapping[str, Any]  # by dotted keys

    @property
    def name(self) -> str:
        """The name of the run: that of its folder, and before it the sweep's, whose trials are numbered only."""
        return self.folder.name if self.group is None else f"{self.group}-{self.folder.name}"

    def plain_settings(self) -> dict[str, Any]:
        """Return the settings with lists in place of tuples."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in self.settings.items()}


@dataclass(frozen=True)
class Known:
    """What ``trackers.json`` holds of a library: the library's run, and the last step that it was told about."""

    run: dict[str, str] = field(default_factory=dict)
    step: Count = 0


def require_packages(names: Iterable[str]) -> None:
    """Check that the packages of trackers are installed.

    Raises:
        UserError: one is missing.
    """
    missing = [
        name for name in dict.fromkeys(names) if name in PACKAGES and not any(map(_is_installed, PACKAGES[name]))
    ]
    if missing:
        packages = " ".join(PACKAGES[name][0] for name in missing)
        raise UserError(
            f"tracking.with={','.join(missing)}: not installed: pip install {packages}, or distvae with its extra"
            " `tracking`"
        )


def _is_installed(package: str) -> bool:
    # A folder `wandb` or `mlflow` can be imported too.
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


class Library(ABC):
    """A run in a tracking library. Any call may raise any error of the library.

    Args:
        known: what an earlier attempt has kept, whose run is continued.

    Attributes:
        run: names the run in the library, to be kept.
    """

    run: dict[str, str]

    @abstractmethod
    def __init__(self, subject: Subject, known: Known):
        """Begin or continue a run."""

    @abstractmethod
    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add the points of an epoch."""

    @abstractmethod
    def warn(self, text: str, step: int) -> None:
        """Show a warning."""

    @abstractmethod
    def texts(self, title: str, texts: list[str], step: int) -> None:
        """Show texts under a title."""

    @abstractmethod
    def flush(self, step: int) -> None:
        """End a step: nothing more of it follows."""

    @abstractmethod
    def results(self, scores: Mapping[str, float], step: int) -> None:
        """Show the scores of the test sentences."""

    @abstractmethod
    def close(self, ending: Ending) -> None:
        """End the run."""


class WandB(Library):
    """Weights & Biases. Its files are in the run folder, unless ``WANDB_DIR`` names another."""

    def __init__(self, subject: Subject, known: Known):
        from accelerate.tracking import WandBTracker

        self.run = known.run or {"id": uuid.uuid4().hex[:8]}
        self._tracker = WandBTracker(
            subject.project,
            id=self.run["id"],
            resume="allow",
            name=subject.name,
            group=subject.group,
            dir=os.environ.get("WANDB_DIR", str(subject.folder)),
            settings={"console": "off"},
        )
        self._tracker.start()
        self._tracker.store_init_configuration(subject.plain_settings())

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(values), step=step)

    def warn(self, text: str, step: int) -> None:
        self._tracker.tracker.alert("distvae", text)

    def texts(self, title: str, texts: list[str], step: int) -> None:
        self._tracker.log_table(title, columns=["sentence"], data=[[text] for text in texts], step=step)

    def flush(self, step: int) -> None:
        self._tracker.log({}, step=step, commit=True)

    def results(self, scores: Mapping[str, float], step: int) -> None:
        self._tracker.tracker.summary.update(dict(scores))

    def close(self, ending: Ending) -> None:
        self._tracker.tracker.finish(exit_code={"finished": 0, "failed": 1, "interrupted": 255}[ending])


class MLflow(Library):
    """MLflow. Its parameters cannot change, so settings that a resumed run changes become tags."""

    def __init__(self, subject: Subject, known: Known):
        import mlflow
        from accelerate.tracking import MLflowTracker

        self._mlflow = mlflow
        # Accelerate's tracker makes the experiment in a way that fails when several trials do so at once.
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", subject.project))
        self._tracker = MLflowTracker(subject.project, run_id=known.run.get("run_id"), run_name=subject.name)
        self._tracker.start()
        self.run = {"run_id": self._tracker.tracker.info.run_id}
        there = mlflow.MlflowClient().get_run(self.run["run_id"]).data.params
        settings = {key: _text(value) for key, value in subject.settings.items()}
        self._tracker.store_init_configuration({key: value for key, value in settings.items() if key not in there})
        tags = {key: value[:_LONGEST_TAG] for key, value in settings.items() if there.get(key, value) != value}
        mlflow.set_tags(tags if subject.group is None else tags | {"sweep": subject.group})

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(values), step=step)

    def warn(self, text: str, step: int) -> None:
        self._mlflow.set_tag(f"warning.{step}", text[:_LONGEST_TAG])

    def texts(self, title: str, texts: list[str], step: int) -> None:
        self._mlflow.log_text("".join(f"{text}\n" for text in texts), f"{title}/{step:08d}.txt")

    def flush(self, step: int) -> None:
        pass  # each call has reached the server

    def results(self, scores: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(scores), step=step)

    def close(self, ending: Ending) -> None:
        self._mlflow.end_run({"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}[ending])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class Trackio(Library):
    """Trackio. It tells runs apart by their names, so a name that is taken gets a number."""

    def __init__(self, subject: Subject, known: Known):
        import trackio
        from accelerate.tracking import TrackioTracker

        self._trackio = trackio
        name = known.run.get("name") or self._free_name(subject)
        self._tracker = TrackioTracker(
            subject.project,
            name=name,
            group=subject.group,
            config=subject.plain_settings(),
            resume="allow" if known.run else "never",
            embed=False,
        )
        self._tracker.start()
        self.run = {"name": name, "id": self._tracker.tracker.id}
        if known.step and known.run != self.run:
            raise RuntimeError(f"its run {name} of project {subject.project} is not this one")
        self._row: dict[str, Any] = {}

    def _free_name(self, subject: Subject) -> str:
        try:
            taken = {run.name for run in self._trackio.Api().runs(subject.project)}
        except ValueError:  # a new project
            return subject.name
        numbers = (f"{subject.name}-{number}" for number in range(2, len(taken) + 3))
        return next(name for name in (subject.name, *numbers) if name not in taken)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._row |= values

    def warn(self, text: str, step: int) -> None:
        self._tracker.tracker.alert("distvae", text, step=step)

    def texts(self, title: str, texts: list[str], step: int) -> None:
        self._row[title] = self._trackio.Table(columns=["sentence"], data=[[text] for text in texts])

    def flush(self, step: int) -> None:
        row, self._row = self._row, {}
        self._tracker.log(row, step=step)
        time.sleep(_TRACKIO_SECONDS)

    def results(self, scores: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(scores), step=step)

    def close(self, ending: Ending) -> None:
        self._tracker.finish()


LIBRARIES: dict[str, type[Library]] = {"wandb": WandB, "mlflow": MLflow, "trackio": Trackio}
