"""Attempts at a run that libraries show, each a process of its own: ``python -m tests.runs.trackers.attempt``.

The first is killed as soon as the libraries have been told of step 10, the second some time after step 20. Both resumes
are from step 10, so the third records step 20 again, with another number; then it shows a trial of a sweep, and another
run of the same name.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from accelerate import PartialState

from distvae.config.schema import Config, StageConfig, TrackingConfig
from distvae.runs.trackers import Trackers, external
from tests.conftest import PATIENCE
from tests.runs.epochs import VALID, record


def config(libraries: list[str], epochs: int = 4) -> Config:
    return Config(train=StageConfig(epochs), tracking=TrackingConfig(trackers=tuple(libraries), project="a project"))


def show(trackers: Trackers, step: int, **values) -> None:
    trackers.epoch(record(step, **values))
    trackers.texts("prior samples", [f"said at {step}", "<b> é"], step)
    trackers.flush()


def be_killed(trackers: Trackers, seconds: float) -> None:
    """End by SIGKILL, some seconds after the libraries have been told everything."""
    for tracker in trackers._external:
        told = threading.Event()
        tracker._queue.put(lambda library, told=told: told.set())
        assert told.wait(PATIENCE)
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def first(run: Path, libraries: list[str]) -> None:
    trackers = Trackers(run, 0, config(libraries))
    show(trackers, 10, kl_weight=0.1)
    be_killed(trackers, 0)


def second(run: Path, libraries: list[str]) -> None:
    trackers = Trackers(run, 10, config(libraries))
    show(trackers, 20, kl_weight=0.2)
    be_killed(trackers, 2)


def third(run: Path, libraries: list[str]) -> None:
    trackers = Trackers(run, 10, config(libraries, epochs=6))
    show(trackers, 20, kl_weight=0.9)
    for tracker in trackers._external:
        tracker.warn("the latent is dead", 30)
    show(trackers, 30, kl_weight=0.3)
    trackers.results(VALID)
    trackers.close()
    for folder, group in ((run.parent / "0001", "lr"), (run.parent / "elsewhere" / run.name, None)):
        folder.mkdir(parents=True)
        trackers = Trackers(folder, 0, config(libraries), group)
        show(trackers, 10)
        trackers.end("interrupted")


def unanswered(run: Path, libraries: list[str]) -> None:
    """Fail while the libraries wait for a server."""
    external.SHORT_PATIENCE = 2
    trackers = Trackers(run, 0, config(libraries))
    show(trackers, 10)
    trackers.end("failed")
    assert any(tracker._thread.is_alive() for tracker in trackers._external)  # these still wait, for minutes


if __name__ == "__main__":
    PartialState()  # as a run has it
    parts = {"first": first, "second": second, "third": third, "unanswered": unanswered}
    parts[sys.argv[1]](Path(sys.argv[2]), sys.argv[3:])
