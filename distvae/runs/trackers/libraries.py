"""The tracking libraries, through Accelerate's trackers.

A library is a subclass of ``Library`` and a name in ``LIBRARIES``. Each is used from one thread only.
"""

from __future__ import annotations

import json
import math
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from distvae.runs.trackers.tracker import Ending
from distvae.system.errors import UserError

# Packages that provide a library: one of them is enough.
PACKAGES = {"wandb": ("wandb",), "mlflow": ("mlflow-skinny", "mlflow"), "trackio": ("trackio",)}

# Most characters of a tag of MLflow.
_LONGEST_TAG = 5000

# The most seconds that Weights & Biases uploads after the end of a run.
_UPLOAD_SECONDS = 50.0


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
        """Return the settings as values that JSON has: lists in place of tuples, infinity as text."""
        return {key: _plain(value) for key, value in self.settings.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


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
        kept: ``run`` of an earlier attempt, to continue; empty begins another.

    Attributes:
        run: names the run in the library.
        step: the last step that the library already has. It is told of later steps only, because no library replaces
            points.
    """

    run: dict[str, str]
    step: int = 0

    @abstractmethod
    def __init__(self, subject: Subject, kept: Mapping[str, str]):
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
    """Weights & Biases. Its files are in the run folder, unless ``WANDB_DIR`` names another.

    Offline, each attempt has a file of its own, which holds the points of all attempts. The file of a killed process
    may lack its last ones.
    """

    def __init__(self, subject: Subject, kept: Mapping[str, str]):
        import wandb
        from accelerate.tracking import WandBTracker

        # It would ask on a terminal, while the run trains.
        if wandb.setup().settings.mode in ("online", "shared") and not wandb.login(prompt=False):
            raise UserError("there is no login: run `wandb login`, or set WANDB_MODE=offline")
        self.run = dict(kept) or {"id": uuid.uuid4().hex[:8]}
        self._tracker = WandBTracker(
            subject.project,
            id=self.run["id"],
            resume="allow",
            name=subject.name,
            group=subject.group,
            dir=os.environ.get("WANDB_DIR", str(subject.folder)),
            settings={"console": "off", "finish_timeout": _UPLOAD_SECONDS},
        )
        self._tracker.start()
        self.step = max(self._tracker.tracker.starting_step - 1, 0)  # offline always 0
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
    """MLflow. Its parameters cannot change, so settings that a resumed run changes become tags.

    A killed process may leave part of a step, so each curve has its own last step.
    """

    def __init__(self, subject: Subject, kept: Mapping[str, str]):
        import mlflow
        from accelerate.tracking import MLflowTracker

        self._mlflow = mlflow
        # Accelerate's tracker makes the experiment in a way that fails when several trials do so at once.
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", subject.project))
        self._tracker = MLflowTracker(subject.project, run_id=kept.get("run_id"), run_name=subject.name)
        self._tracker.start()
        self.run = {"run_id": self._tracker.tracker.info.run_id}
        client, run_id = mlflow.MlflowClient(), self.run["run_id"]
        data = client.get_run(run_id).data
        histories = {name: client.get_metric_history(run_id, name) for name in data.metrics}
        self._last = {name: max(point.step for point in points) for name, points in histories.items()}
        there = data.params
        settings = {key: _text(value) for key, value in subject.settings.items()}
        self._tracker.store_init_configuration({key: value for key, value in settings.items() if key not in there})
        tags = {key: value[:_LONGEST_TAG] for key, value in settings.items() if there.get(key, value) != value}
        mlflow.set_tags(tags if subject.group is None else tags | {"sweep": subject.group})

    def log(self, values: Mapping[str, float], step: int) -> None:
        lacking = {name: value for name, value in values.items() if step > self._last.get(name, -1)}
        if lacking:
            self._tracker.log(lacking, step=step)

    def warn(self, text: str, step: int) -> None:
        self._mlflow.set_tag(f"warning.{step}", text[:_LONGEST_TAG])

    def texts(self, title: str, texts: list[str], step: int) -> None:
        self._mlflow.log_text("".join(f"{text}\n" for text in texts), f"{title}/{step:08d}.txt")

    def flush(self, step: int) -> None:
        pass  # each call has reached the server

    def results(self, scores: Mapping[str, float], step: int) -> None:
        self.log(scores, step)

    def close(self, ending: Ending) -> None:
        self._mlflow.end_run({"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}[ending])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class Trackio(Library):
    """Trackio. It tells runs apart by their names, so a name that is taken gets a number."""

    def __init__(self, subject: Subject, kept: Mapping[str, str]):
        import trackio
        from accelerate.tracking import TrackioTracker

        self._trackio = trackio
        name = kept.get("name") or self._free_name(subject)
        self._tracker = TrackioTracker(
            subject.project,
            name=name,
            group=subject.group,
            config=subject.plain_settings(),
            resume="allow" if kept else "never",
            embed=False,
        )
        self._tracker.start()
        run = self._tracker.tracker
        self.run = {"name": name, "id": run.id}
        self.step = max(run._next_step - 1, 0)  # Trackio also asks a remote server
        if self.step and kept != self.run:
            raise RuntimeError(f"another run is named {name} in the project {subject.project}")
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

    def results(self, scores: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(scores), step=step)

    def close(self, ending: Ending) -> None:
        self._tracker.finish()


LIBRARIES: dict[str, type[Library]] = {"wandb": WandB, "mlflow": MLflow, "trackio": Trackio}
