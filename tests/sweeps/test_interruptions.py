"""Sweeps with real Ray that lose a trial, Ray or their terminal: each saves itself, and resumes."""

import contextlib
import json
import os
import pty
import select
import signal
import sys
from pathlib import Path

import pytest

from distvae.runs.checkpoints import list_checkpoints
from tests.compare import records
from tests.conftest import PATIENCE, ROOT, wait_until
from tests.sweeps.programs import SET, after_pretraining, alone, run, start, trials, until, write

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray")]


def account(folder: Path) -> None:
    """Check that the times of all started trials, over all their attempts, fit the sweep's."""
    begun = [trial for trial in trials(folder) if trial["starts"]]
    told = json.loads((folder / "sweep.json").read_text())
    for trial in begun:
        rows = records(folder / "trials" / f"{trial['number']:04d}")
        assert trial["seconds"] > sum(row["train"]["seconds"] for row in rows if row["stage"] == "train") > 0
    assert sum(trial["seconds"] for trial in begun) <= told["place_seconds"]
    assert told["trial_seconds"] < told["seconds"]


def test_what_is_lost_goes_on_from_its_checkpoint(tmp_path, tiny):
    file = write(tmp_path, tiny, space={"kl.multiplier": {"grid": [0.1, 0.2]}}, set=SET | {"train.max_epochs": 60})
    folder, moved = tmp_path / "sweep", tmp_path / "moved"
    process = start(file)
    runs = [folder / "trials" / name for name in ("0000", "0001")]
    until(lambda: list_checkpoints(runs[0]) and (runs[0] / "metrics.jsonl").exists(), "a trial saves itself", process)
    os.kill(json.loads((runs[0] / "starts" / "0001.json").read_text())["process"], signal.SIGKILL)
    until(lambda: "start-0002" in str(list_checkpoints(runs[0])[-1:]), "its second attempt saves itself", process)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, said
    assert "rerun the same command to resume" in said[1]
    assert json.loads((folder / "sweep.json").read_text())["state"] == "interrupted"
    status = json.loads((runs[0] / "status.json").read_text())
    assert status["state"] in ("interrupted", "finished"), status
    account(folder)
    # Resume it in another place, from its folder alone.
    folder.rename(moved)
    run("--resume", moved)
    found = trials(moved)
    assert [trial["state"] for trial in found] == ["finished"] * 2
    assert found[0]["starts"] >= 3
    account(moved)
    for trial in found:
        one = alone(tmp_path / f"by itself {trial['number']}", tiny, **trial["values"] | {"train.max_epochs": 60})
        assert after_pretraining(moved / "trials" / f"{trial['number']:04d}") == after_pretraining(one)


def family(process: int) -> set[int]:
    """A process and its descendants."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
    found, more = set(), {process}
    while more:
        found |= more
        more = {child for child, parent in parents.items() if parent in more} - found
    return found


def listening(processes: set[int]) -> set[str]:
    """The addresses on which processes listen for TCP connections, as the kernel writes them."""
    sockets = set()
    for process in processes:
        with contextlib.suppress(OSError):
            for link in Path(f"/proc/{process}/fd").iterdir():
                with contextlib.suppress(OSError):
                    sockets.add(os.readlink(link))
    rows = [line.split() for kind in ("tcp", "tcp6") for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets}


# 127.0.0.1, the same as an IPv6 address, and ::1.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


def test_on_one_machine_ray_is_for_this_machine_alone_and_its_death_is_no_hang(tmp_path, tiny):
    """A TMPDIR that is too long for sockets does no harm."""
    long = tmp_path / ("t" * (93 - len(str(tmp_path)) - 1) if len(str(tmp_path)) < 60 else "t" * 33)
    long.mkdir()
    file = write(tmp_path, tiny, space={"kl.multiplier": {"grid": [0.1, 0.2]}}, set=SET | {"train.max_epochs": 60})
    runs = [tmp_path / "sweep" / "trials" / name for name in ("0000", "0001")]
    process = start(file, TMPDIR=str(long))
    until(lambda: list_checkpoints(runs[0]) and (runs[0] / "metrics.jsonl").exists(), "a trial saves itself", process)
    ours = family(process.pid)
    assert listening(ours)
    assert listening(ours) <= LOOPBACK
    # Ray would lower the priority of trials.
    assert {os.getpriority(os.PRIO_PROCESS, p) for p in ours} == {os.getpriority(os.PRIO_PROCESS, process.pid)}
    (raylet,) = (p for p in ours if Path(f"/proc/{p}/comm").read_text().strip() == "raylet")
    os.kill(raylet, signal.SIGKILL)
    said, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 75, (said, error)
    assert error.splitlines()[0] == (
        f"TMPDIR = {long}: is too long for the paths of sockets; this sweep uses "
        + error.splitlines()[0].rpartition(" ")[2]
    )
    assert error.splitlines()[-1].endswith("Ray's raylet has ended; rerun the same command to resume")
    assert not Path(error.splitlines()[0].rpartition(" ")[2]).exists()
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["state"] == "interrupted"
    wait_until(lambda: not any(Path(f"/proc/{p}/cmdline").exists() for p in ours), f"all of {ours} end")
    run(file)
    assert [trial["state"] for trial in trials(tmp_path / "sweep")] == ["finished"] * 2
    assert list(long.iterdir()) == []


def test_a_sweep_whose_terminal_is_closed_has_saved_itself(tmp_path, tiny):
    file = write(tmp_path, tiny, space={"kl.multiplier": {"grid": [0.1]}}, set=SET | {"train.max_epochs": 3000})
    run = tmp_path / "sweep" / "trials" / "0000"
    process, terminal = pty.fork()
    if process == 0:
        os.execv(sys.executable, [sys.executable, str(ROOT / "launch" / "sweep.py"), str(file)])

    def is_saved() -> bool:
        if select.select([terminal], [], [], 0)[0]:
            os.read(terminal, 2**16)
        return list_checkpoints(run) and records(run)

    wait_until(is_saved, "the trial saves itself")
    os.close(terminal)
    os.waitpid(process, 0)
    for folder, name in ((run, "status.json"), (tmp_path / "sweep", "sweep.json")):
        told = json.loads((folder / name).read_text())
        assert told["state"] == "interrupted", told
