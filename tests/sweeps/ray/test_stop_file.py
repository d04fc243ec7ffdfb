"""The stop file."""

import time

import pytest

from distvae.system.signals import Signals
from tests.sweep_folders import sweep_of, write_sweep

pytest.importorskip("ray", reason="no Ray: pip install -e '.[sweep]'")

from distvae.sweeps.ray.driver import open_folder
from distvae.sweeps.ray.signals import StopSignals
from distvae.sweeps.ray.stop_file import STOP, StopFileWatcher


def test_trials_are_asked_to_stop_by_a_file_that_exists_from_the_beginning(tmp_path):
    """A network file system may hide a new file for a minute."""
    asked = sweep_of(tmp_path / "sweep")
    write_sweep(asked, [])
    path = asked.folder / STOP
    path.write_text("SIGTERM\n")  # from an earlier attempt
    state = open_folder(asked, StopSignals(), time.monotonic())
    inode = path.stat().st_ino
    signals = Signals()
    with StopFileWatcher(asked.folder, signals) as watcher:
        watcher.join(1.2)
        assert signals.asked is None
        state.signals.received = "SIGTERM"
        state.request_save()
        watcher.join(10)
        assert signals.asked == "the sweep"
    state.lease.release()
    assert path.stat().st_ino == inode
