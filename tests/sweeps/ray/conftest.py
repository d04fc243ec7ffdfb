from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from distvae.sweeps.progress import SweepProgress
from tests.sweep_folders import sweep_of

pytest.importorskip("ray", reason="no Ray: pip install -e '.[sweep]'")

from distvae.sweeps.ray.signals import StopSignals
from distvae.sweeps.ray.state import SweepState
from distvae.sweeps.ray.tuning import TuneMonitor


@pytest.fixture
def state_of(tmp_path, monkeypatch) -> Callable[..., SweepState]:
    """Makes the state of a sweep from the content of its file, as it is once the sweep's folder is open."""

    def make(**content) -> SweepState:
        lease = SimpleNamespace(lost=False, check=lambda: None, release=lambda: None)
        state = SweepState(sweep_of(tmp_path / "sweep", **content), lease, StopSignals(), time.monotonic())
        state.progress = SweepProgress(slots=2)
        monkeypatch.setattr(TuneMonitor, "current", TuneMonitor(state), raising=False)
        return state

    return make


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A monotonic clock that the test sets."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    return clock
