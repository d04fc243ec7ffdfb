"""A process that hangs is named, whichever it is, and the run can be resumed."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from distvae.runs.checkpoints import newest_checkpoint
from tests.conftest import PATIENCE, ROOT, fork, free_port, wait_until

pytestmark = pytest.mark.cluster

MINUTES = 0.1


def start(tmp_path, rank, processes, port, *arguments):
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    environment = {name: str(value) for name, value in place.items()}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    with (tmp_path / f"{rank}.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, ROOT / "distvae" / "train.py", *arguments], env=os.environ | environment,
            stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip


def train(tmp_path, processes, *arguments):
    port = str(free_port())
    return [start(tmp_path, rank, processes, port, *arguments) for rank in range(processes)]


def reason_in(log):
    (line,) = [line for line in log.read_text().splitlines() if line.startswith("distvae: ")]
    return line.removeprefix("distvae: ")


@pytest.mark.parametrize("hung", [0, 1])
def test_a_rank_that_is_stopped_is_named(tiny, tmp_path, hung):
    run = tmp_path / "run"
    arguments = [str(tiny), f"run={run}", "checkpoint.every_steps=5"]
    endless = ["train.max_epochs=100000", f"communication.timeout_minutes={MINUTES}"]
    ranks = train(tmp_path, 3, *arguments, *endless)
    try:
        log = tmp_path / "0.log"
        wait_until(lambda: run.is_dir() and newest_checkpoint(run), "there is a checkpoint", log.read_text)
        ranks[hung].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        others = [rank for rank in range(3) if rank != hung]
        speaker = others[0]
        for rank in others:
            assert ranks[rank].wait(timeout=PATIENCE) == 1
        assert time.monotonic() - began > 60 * MINUTES / 2
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    reason = reason_in(tmp_path / f"{speaker}.log")
    assert re.match(
        rf"rank {hung} \(process {ranks[hung].pid} of \S+\) has given no sign of life for {MINUTES} minutes", reason
    )
    assert "resume from the last checkpoint" in reason
    if hung != 0:
        status = json.loads((run / "status.json").read_text())
        assert (status["state"], status["reason"]) == ("failed", reason)
    # It resumes, also with another timeout.
    codes, told = fork(tmp_path, [{"processes": 3, "runs": [arguments]}])
    assert codes == [[0, 0, 0]], told
    assert "resuming from" in told


def test_a_rank_that_is_busy_for_longer_keeps_the_others_waiting(tiny, tmp_path):
    """The main process prepares the corpus for longer than processes wait for a sign of life, and than a collective
    may take."""
    program = tmp_path / "slow.py"
    program.write_text(
        "import sys, time\n"
        "from distvae import train\nfrom distvae.data import corpus\n"
        "prepare = corpus.prepare\n"
        "def slowly(*arguments, **options):\n"
        "    time.sleep(10)\n"
        "    return prepare(*arguments, **options)\n"
        "corpus.prepare = slowly\n"
        "sys.exit(train.main())\n"
    )
    arguments = [str(tiny), f"run={tmp_path / 'run'}", "train.max_epochs=1", "communication.timeout_minutes=0.05"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
        + [str(program), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "results.json").exists()


def test_a_process_that_never_comes_is_one_line(tiny, tmp_path):
    arguments = [str(tiny), f"run={tmp_path / 'run'}", f"communication.timeout_minutes={MINUTES}"]
    process = start(tmp_path, 0, 2, str(free_port()), *arguments)
    assert process.wait(timeout=PATIENCE) == 2
    assert "1/2 clients joined" in reason_in(tmp_path / "0.log")
    assert not (tmp_path / "run").exists()
