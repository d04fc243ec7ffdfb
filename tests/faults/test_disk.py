"""Disks that are full or read-only: one clear line, the last good checkpoint stays, and the run goes on once there is
room."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from distvae.runs.checkpoints import newest_checkpoint
from tests.compare import numbers
from tests.conftest import fork_each, needs

pytestmark = pytest.mark.cluster


@pytest.fixture
def disk(tmp_path):
    """A disk of a size of its own, in kB, or None where this machine makes none."""
    mounts = []

    def make(kilobytes: int) -> Path:
        folder = tmp_path / f"disk{len(mounts)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
        needs(mounted, "a small disk needs root, and a machine that lets it mount one")
        mounts.append(folder)
        return folder

    yield make
    for folder in mounts:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def train(folder: Path, *arguments: str, processes: int = 1) -> list[subprocess.CompletedProcess]:
    """The program in processes of their own, without a launcher that would hide what each exits with."""
    (done,) = fork_each(folder, [{"processes": processes, "launched": processes > 1, "runs": [list(arguments)]}])
    return done


def digest(run: Path) -> str:
    return hashlib.sha256((run / "best" / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_full_disk_leaves_the_last_good_checkpoint(tiny, tmp_path, disk, processes):
    run = disk(4000) / "run"
    settings = [str(tiny), f"run={run}", "evaluation.samples=0"]
    # A few checkpoints of 100 kB each have room, and then no more.
    filler = run.parent / "filler"
    filler.write_bytes(b"x" * 3_300_000)
    done = train(tmp_path, *settings, "checkpoint.keep=99", "checkpoint.every_steps=3", processes=processes)
    assert [each.returncode for each in done] == [2] * processes, done
    said = "".join(each.stderr for each in done)
    lines = [line for line in said.splitlines() if line.startswith("distvae: ")]
    assert len(lines) == 1, said
    assert "cannot be written: " in lines[0]
    assert "No space left on device" in lines[0] or "os error 28" in lines[0]
    assert "Traceback" not in said
    good = newest_checkpoint(run)
    assert good is not None
    assert not (run / "results.json").exists()
    # With room again, the same command goes on, and nothing half-written has stayed.
    filler.unlink()
    done = train(tmp_path, *settings, "checkpoint.every_steps=3", processes=processes)
    assert [each.returncode for each in done] == [0] * processes, done
    assert f"resuming from {good}" in done[0].stdout
    assert not [path for path in run.rglob(".*")]
    straight = tmp_path / "straight"
    done = train(tmp_path, str(tiny), f"run={straight}", "evaluation.samples=0", processes=processes)
    assert digest(run) == digest(straight)
    assert numbers(run) == numbers(straight)


def test_a_read_only_folder_is_one_line(tiny, finished, tmp_path, disk):
    folder = disk(4000)
    shutil.copytree(finished, folder / "run", symlinks=True)
    (folder / "run" / "results.json").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    for run in (folder / "run", folder / "new"):
        (done,) = train(tmp_path, str(tiny), f"run={run}")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert f"run={run}: cannot be a run folder: Read-only file system" in done.stderr
        assert done.stdout.startswith(f"{run}: starting ")
        assert done.stdout.count("\n") == 1


def test_a_disk_that_is_full_from_the_start_is_one_line(tiny, tmp_path, disk):
    folder = disk(64)
    (folder / "filler").write_bytes(b"x" * 61_000)
    (done,) = train(tmp_path, str(tiny), f"run={folder / 'run'}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr
    status = folder / "run" / "status.json"
    assert not status.exists() or json.loads(status.read_text())["state"] in ("running", "failed")
