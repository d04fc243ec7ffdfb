"""slurm/node.sh."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, wait_for_file
from tests.slurm.scripts import bash, stand_ins


@pytest.mark.parametrize("given", ["2", None])
def test_processes_see_no_gpu_that_the_job_was_not_given(checkout, given):
    programs = stand_ins(checkout, {"accelerate": 'echo "GPUs: ${CUDA_VISIBLE_DEVICES-all}"\n'})
    slurm = {"SLURM_NODEID": "0", "DISTVAE_EXIT_FILE": str(checkout / "exit")}
    if given:
        slurm["SLURM_GPUS_ON_NODE"] = given
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = bash("slurm/node.sh", cwd=checkout, PATH=path, CUDA_VISIBLE_DEVICES="0,1", **slurm)
    assert (done.stdout, done.stderr) == (f"GPUs: {'0,1' if given else ''}\n", "")
    stand_ins(checkout, {"nvidia-smi": "echo 'GPU 0: NVIDIA H200'\n"})
    done = bash("slurm/node.sh", cwd=checkout, PATH=path, CUDA_VISIBLE_DEVICES="0,1", SLURMD_NODENAME="n1", **slurm)
    assert ("WARNING n1 has GPUs, but Slurm gave the job none" in done.stderr) == (given is None)


# A launcher that signals kill, and the training that it starts: in its own session, slow to start, with a helper that
# signals would kill too.
LAUNCHER = """\
#!{python}
import subprocess, sys
subprocess.Popen([sys.executable, "training.py"], start_new_session=True).wait()
"""

TRAINING = """\
import os, signal, subprocess, sys, time
time.sleep(1.5)
def end(number, frame):
    count.append(number)
count = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, end)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGUSR1})
helper = subprocess.Popen(["sleep", "60"])
open("trains", "w").close()
until = time.monotonic() + 900
while not count and time.monotonic() < until:
    time.sleep(0.1)
time.sleep(1.2)
print("had", *count, "helper", helper.poll(), flush=True)
helper.kill()
open(os.environ["DISTVAE_EXIT_FILE"], "w").close()
"""


@pytest.mark.parametrize("early", [True, False])
def test_a_nodes_training_gets_each_signal_once_and_its_launcher_none(checkout, tmp_path, early):
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "accelerate").write_text(LAUNCHER.format(python=sys.executable))
    (programs / "accelerate").chmod(0o755)
    (tmp_path / "training.py").write_text(TRAINING)
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_NODEID": "0", "SLURMD_NODENAME": "n1",
        "DISTVAE_EXIT_FILE": str(tmp_path / "exit"),
    }  # fmt: skip
    environment.pop("SLURM_GPUS_ON_NODE", None)
    process = subprocess.Popen(
        ["bash", checkout / "slurm" / "node.sh"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if not early:
        wait_for_file(tmp_path / "trains")
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert said == f"SIGTERM: passed on to the training, to save and end\nhad {signal.SIGTERM:d} helper None\n"
