"""Two attempts at a run that libraries show, each a process of its own: ``python -m tests.runs.trackers.attempt``.

The first is killed once the libraries have its epochs of steps 10 and 20. The second resumes from step 10, so that it
records step 20 again, with another number; then it shows a trial of a sweep, and another run of the same name.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from accelerate import PartialState

from distvae.config.schema import Config, StageConfig, TrackingConfig
from distvae.runs.trackers import Trackers
from tests.runs.epochs import VALID, record


def config(libraries: list[str], epochs: int = 4) -> Config:
    return Config(train=StageConfig(epochs), tracking=TrackingConfig(trackers=tuple(libraries), project="a project"))


def show(trackers: Trackers, step: int, **values) -> None:
    trackers.epoch(record(step, **values))
    trackers.texts("prior samples", [f"said at {step}", "<b> é"], step)
    trackers.flush()


def first(run: Path, libraries: list[str]) -> None:
    trackers = Trackers(run, 0, config(libraries))
    for step in (10, 20):
        show(trackers, step, kl_weight=step / 100)
    known: dict = {}
    end = time.monotonic() + 100
    while time.monotonic() < end and any(known.get(name, {}).get("step") != 20 for name in libraries):
        time.sleep(0.05)
        if (run / "trackers.json").exists():
            known = json.loads((run / "trackers.json").read_text())
    os.kill(os.getpid(), signal.SIGKILL)


def second(run: Path, libraries: list[str]) -> None:
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


if __name__ == "__main__":
    PartialState()  # as a run has it
    {"first": first, "second": second}[sys.argv[1]](Path(sys.argv[2]), sys.argv[3:])
