"""A sweep's temporary folder."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from distvae.sweeps.__main__ import main
from tests.sweep_folders import sweep_of

pytest.importorskip("ray", reason="no Ray: pip install -e '.[sweep]'")

from distvae.sweeps.ray.scratch import scratch


@pytest.fixture
def short(monkeypatch):
    """A folder with a short path that replaces /tmp for sweeps. The environment is restored afterwards."""
    before = dict(os.environ)
    for name in (
        "RAY_ADDRESS",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN_PATH",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
        "RAY_TMPDIR",
    ):
        monkeypatch.delenv(name, raising=False)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setattr("distvae.sweeps.ray.scratch.ROOT", Path(folder))
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)
    os.environ.clear()
    os.environ.update(before)


def test_a_sweeps_temporary_folder_is_its_own_and_goes_with_it(short):
    with scratch() as folder:
        assert stat.filemode(folder.stat().st_mode) == "drwx------"
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        assert token.parent == folder
        assert len(token.read_text()) == 64
        assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
        assert os.environ["GLOO_SOCKET_IFNAME"] == "lo"
        assert os.environ["RAY_TMPDIR"] == str(folder)
        with scratch() as other:  # of another sweep, which leaves the first alone
            assert other != folder
        assert folder.is_dir()
    assert list(short.iterdir()) == []


def test_a_cluster_that_others_started_keeps_its_token_and_its_interfaces(short, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "node:6379")
    with scratch():
        assert not {"RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_TMPDIR"} & os.environ.keys()


def test_what_a_killed_driver_left_is_removed_by_the_next_and_nothing_else(short):
    dies = f"""
import os, pathlib, signal
from distvae.sweeps.ray import scratch
scratch.ROOT = pathlib.Path({str(short)!r})
with scratch.scratch() as folder:
    (folder / "ray").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", dies]).returncode == -signal.SIGKILL
    (left,) = short.iterdir()
    (others := short / f"{left.name[:-8]}noneofus").mkdir()
    (again := short / f"{left.name[:-8]}madagain").mkdir()
    os.utime(again, (0, 0))
    (short / "linked").mkdir()
    (short / f"{left.name[:-8]}aslinked").symlink_to(short / "linked")
    (short / "linked" / "lock").write_text("")
    with scratch():
        assert not left.exists()
        assert not again.exists()
        assert others.exists()
        assert (short / "linked" / "lock").exists()


@pytest.mark.parametrize(("length", "replaced"), [(60, False), (61, True), (93, True), (200, True)])
def test_a_tmpdir_that_is_too_long_for_sockets_is_replaced(short, monkeypatch, capsys, length, replaced):
    given = short / ("t" * (length - len(str(short)) - 1))
    given.mkdir()
    monkeypatch.setenv("TMPDIR", str(given))
    with scratch() as folder:
        assert tempfile.gettempdir() == str(folder if replaced else given)
        assert os.environ["TMPDIR"] == tempfile.gettempdir()
    error = capsys.readouterr().err
    assert error.count("\n") == replaced
    assert (f"TMPDIR = {given}" in error) == replaced


def test_where_no_temporary_folder_can_be_made_a_line_says_so(short, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("distvae.sweeps.ray.scratch.ROOT", short / "none")
    asked = sweep_of(tmp_path / "sweep")
    assert main([str(tmp_path / "file.yaml"), "max_restarts=1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"distvae: {short / 'none'}: a sweep needs a temporary folder there")
    assert error.count("\n") == 1
    assert list(asked.folder.iterdir()) == []
