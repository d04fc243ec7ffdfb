"""Machines of one run that do not see each other's files, but the run's folder: processes in folders of their own."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT, free_port


@pytest.fixture
def machines(tmp_path):
    """Two folders in which relative paths mean other things."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    return folders


def train(machines, *arguments):
    """One run by a process on each machine; returns what each exited with and said."""
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, ROOT / "distvae" / "train.py", *map(str, arguments)],
            cwd=folder,
            env=os.environ
            | {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, folder in enumerate(machines)
    ]
    said = [process.communicate(timeout=300) for process in processes]
    return [process.returncode for process in processes], said


def test_a_machine_without_the_firsts_cache_makes_its_own(tiny, tmp_path, machines):
    codes, said = train(machines, tiny, f"run={tmp_path / 'run'}", "data.cache=cache", "train.max_epochs=1")
    assert codes == [0, 0], said
    first, second = ([path.name for path in (folder / "cache").iterdir()] for folder in machines)
    assert first == second
    assert (tmp_path / "run" / "results.json").exists()


def test_what_only_one_machine_cannot_do_ends_all_with_one_line(tiny, tmp_path, machines):
    (machines[1] / "cache").write_text("no folder")
    codes, said = train(machines, tiny, f"run={tmp_path / 'run'}", "data.cache=cache")
    assert codes == [2, 2], said
    told = [line for _, errors in said for line in errors.splitlines() if line.startswith("distvae: ")]
    assert len(told) == 1
    assert "data.cache=cache: cannot be written" in told[0]
