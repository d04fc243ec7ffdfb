"""Starting Ray, and watching its processes."""

import subprocess
import threading
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="no Ray: pip install -e '.[sweep]'")

from types import SimpleNamespace

from distvae.sweeps.ray.cluster import RayWatch, connect, failure_reason
from tests.conftest import PATIENCE, wait_until


@pytest.mark.parametrize("closing", [False, True])
def test_rays_processes_are_missed_when_they_die(monkeypatch, closing):
    monkeypatch.setattr("distvae.sweeps.ray.cluster.RayWatch.NAMES", ("sleep",))
    process, over, missed = subprocess.Popen(["sleep", "10000"]), threading.Event(), []
    executed = Path(f"/proc/{process.pid}/comm")
    wait_until(lambda: executed.read_text() == "sleep\n", "the child executes `sleep`")
    watch = RayWatch(missed.append, over)
    watch.start()
    process.kill()
    if closing:
        over.set()
    watch.join(PATIENCE)
    assert missed == ([] if closing else ["sleep"])
    process.wait()


def test_a_cluster_of_ones_own_listens_on_the_loopback_interface(monkeypatch, capsys):
    given = {}
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "token")
    monkeypatch.setattr(
        "distvae.sweeps.ray.cluster.ray.init",
        lambda **options: given.update(options) or SimpleNamespace(dashboard_url="127.0.0.1:1"),
    )
    over = threading.Event()
    over.set()
    connect(lambda lost: None, over)
    assert (given["address"], given["dashboard_host"]) == ("local", "127.0.0.1")
    assert "http://127.0.0.1:1 (token in token)" in capsys.readouterr().out


def test_the_reason_of_a_failure_is_the_last_line_of_its_error():
    assert failure_reason(RuntimeError("Traceback …\n  line\nValueError: bad\n")) == "ValueError: bad"
    assert failure_reason(None) == "its process ended without an error message"
