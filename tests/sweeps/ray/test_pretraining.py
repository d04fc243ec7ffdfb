"""Pretrainings that trials share."""

import json
import os
import signal
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from distvae.runs.status import write_status
from distvae.system.signals import SIGNALS, InterruptedRun
from tests.conftest import PATIENCE, wait_for_file
from tests.sweep_folders import scores, write_run

pytest.importorskip("ray", reason="no Ray: pip install -e '.[sweep]'")

from ray.train.v2.api.exceptions import ControllerError

from distvae.sweeps.ray import pretraining
from distvae.sweeps.ray.pretraining import pretrain
from distvae.sweeps.ray.stop_file import STOP


@pytest.fixture
def in_processes(state_of, monkeypatch):
    """A state that pretrains in several processes with a trainer of this test; its signals are installed."""
    state = state_of(trial={"workers": 2})
    former = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
    state.signals.install()

    def run(fit) -> frozenset[str]:
        monkeypatch.setattr("distvae.sweeps.ray.pretraining.torch_trainer", lambda *_: SimpleNamespace(fit=fit))
        return pretrain(state)

    yield state, run
    for number, handler in former.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_pretraining_of_several_processes_is_saved_when_a_signal_comes(in_processes, number):
    state, run = in_processes
    (folder,) = (Path(config.run) for config in state.sweep.pretrainings().values())
    ended = threading.Event()

    def fit() -> None:
        write_run(folder, scores(25, 9, 3, 4), curves=False, epochs=0, pretrain=1)
        write_status(folder, "running", start=1)
        os.kill(os.getpid(), number)
        wait_for_file(state.folder / STOP)
        write_status(folder, "interrupted", start=1)
        ended.wait(PATIENCE)  # like processes that have saved themselves

    with pytest.raises(InterruptedRun, match=f"interrupted by {number.name} while pretraining"):
        run(fit)
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"
    assert 0 < state.progress.pretraining_seconds < PATIENCE
    ended.set()


def test_signals_are_the_drivers_after_a_pretraining_of_several_processes(in_processes):
    """Ray Train replaces the handler of SIGINT for good if it runs in the main thread."""
    state, run = in_processes

    def fit() -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    run(fit)
    for number in SIGNALS:
        assert signal.getsignal(number) == state.signals.handle


def test_a_pretraining_of_several_processes_that_fails_is_told_of(in_processes, capsys):
    _, run = in_processes

    def fit() -> None:
        raise ControllerError(RuntimeError("no luck"))

    assert run(fit) == frozenset()
    assert "no luck" in capsys.readouterr().out


def test_the_time_of_an_interrupted_pretraining_counts(state_of, clock, monkeypatch):
    def interrupted(state, missing):
        clock.now += 20.0
        raise InterruptedRun

    state = state_of(num_samples=1)
    monkeypatch.setattr(pretraining, "_pretrain_side_by_side", interrupted)
    with pytest.raises(InterruptedRun):
        pretrain(state)
    assert state.progress.pretraining_seconds == 20.0
