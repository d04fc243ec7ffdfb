"""slurm/ray.sh, with a stand-in for Ray."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, wait_for_file, wait_until
from tests.slurm.scripts import stand_ins, wait_for_starts

# A stand-in for Ray: processes that hang, one of them in its own process group.
RAY = """\
echo "$*" >"$NOTES/ray"
echo >>"$NOTES/starts"
(($(wc -l <"$NOTES/starts") > ${FAIL:-0})) || { echo "no room"; exit 1; }
set -m
sleep "6000.$SLURM_JOB_ID" &
set +m
trap '' TERM
while [[ ! -e $NOTES/end ]]; do sleep 0.1; done
"""

# A stand-in for Slurm, which removes the job's first node once the file `lost` exists.
LOSES = """\
nodes=n1,n2
[[ ! -e $NOTES/lost ]] || nodes=n2
case "$*" in
    "show hostnames "*) tr , '\\n' <<<"$3" ;;
    *"show job"*) echo "JobId=7 JobState=RUNNING Requeue=1 Restarts=0 ExcNodeList= NodeList=$nodes BatchHost=n1 N=1" ;;
    "requeue "*) touch "$NOTES/requeue" ;;
esac
"""


@pytest.fixture
def ray(checkout, tmp_path):
    """Starts slurm/ray.sh as srun would on a node of a job. ``notes`` has the commands that it called."""
    (tmp_path / "notes").mkdir()
    python = 'if [[ $1 == -c ]]; then sleep "${GATHER:-0.2}"; fi\n'  # until all nodes have joined
    programs = stand_ins(checkout, {"ray": RAY, "python3": python, "scontrol": LOSES, "scancel": "exit 9\n"})
    job = f"{os.getpid()}{time.monotonic_ns() % 1000}"

    def start(node: int, address: str, command: str = "", **environment: str) -> subprocess.Popen:
        given = {
            "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": job, "SLURM_NODEID": str(node),
            "SLURMD_NODENAME": f"n{node + 1}", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "3",
            "DISTVAE_EXIT_FILE": str(tmp_path / "exit"), "NOTES": str(tmp_path / "notes"), **environment,
        }  # fmt: skip
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        return subprocess.Popen(
            ["bash", checkout / "slurm" / "ray.sh", address, "10001", "8265", "bash", "-c", command],
            cwd=tmp_path, env=inherited | given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    yield start
    assert not list(Path("/tmp").glob(f"distvae-ray-{job}.*"))
    # Killed processes may take a moment to end. Other tests run processes at the same time.
    find = ["pgrep", "--full", "--list-full", rf"sleep 6000\.{job}|ray start .*distvae-ray-{job}"]
    wait_until(lambda: subprocess.run(find, capture_output=True).returncode == 1, f"{find} finds nothing")


def test_a_sweeps_first_node_ends_as_the_sweep_does(ray, tmp_path):
    said, _ = (process := ray(0, "10.0.0.1:20000", "exit 3", SLURM_GPUS_ON_NODE="2")).communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (3, "")
    assert (tmp_path / "exit").read_text() == "3\n"
    called = (tmp_path / "notes" / "ray").read_text()
    assert called.startswith("start --block ")
    for option in ("--head", "--num-cpus=3", "--num-gpus=2", "--port=20000", "--node-ip-address=10.0.0.1"):
        assert f" {option} " in called


NO_ROOM = "Ray did not start on n1 (start {} of 3):\n    no room\n"


def test_a_sweeps_first_node_starts_ray_again(ray, tmp_path):
    process = ray(0, "10.0.0.1:20000", 'echo "$RAY_ADDRESS"', FAIL="2", GATHER="1")
    said, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (
        0, "".join(NO_ROOM.format(i) for i in (1, 2)) + "10.0.0.1:20000\n",
    )  # fmt: skip


@pytest.mark.parametrize(("code", "ends"), [(1, 75), (2, 2), (0, 0)])
def test_a_sweep_whose_ray_has_ended_can_go_on(ray, tmp_path, code, ends):
    """Unless it failed by itself, or finished: then it ends with that exit code."""
    command = f"touch notes/end; sleep 0.5; echo {code} >exit; exit {code}"
    said, _ = (process := ray(0, "10.0.0.1:20000", command)).communicate(timeout=PATIENCE)
    assert process.returncode == ends
    assert (tmp_path / "exit").read_text() == f"{ends}\n"
    assert said == ("Ray has ended on n1, and the sweep with it:\n" if ends == 75 else "")


def test_a_sweep_fails_where_ray_does_not_start(ray, tmp_path):
    said, _ = (process := ray(0, "10.0.0.1:20000", "echo sweeps", FAIL="9", GATHER="9")).communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (
        1, "".join(NO_ROOM.format(i) for i in (1, 2, 3)) + "distvae: Ray does not start on n1\n",
    )  # fmt: skip
    assert (tmp_path / "exit").read_text() == "1\n"


def test_a_sweeps_other_nodes_start_ray_again(ray, tmp_path):
    """Each time that Ray ends, after a longer pause, until the sweep ends."""
    with socket.create_server(("127.0.0.1", 0)) as head:
        process = ray(1, f"127.0.0.1:{head.getsockname()[1]}", FAIL="2")
        wait_for_starts(tmp_path, 3)
        time.sleep(2.5)
        assert process.poll() is None
        (tmp_path / "exit").write_text("0\n")
    said, _ = process.communicate(timeout=PATIENCE)
    ended = "Ray has ended on n2 (time {}; it is started again after {} s):\n    no room\n"
    assert (process.returncode, said) == (0, ended.format(1, 0) + ended.format(2, 10))


def test_a_node_without_ray_ends_when_told_to(ray, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as head:
        process = ray(1, f"127.0.0.1:{head.getsockname()[1]}", FAIL="9")
        wait_for_starts(tmp_path, 2)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert len((tmp_path / "notes" / "starts").read_text()) == 2  # it does not wait for the next
    assert said.endswith("the sweep continues without n2\n")


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_a_sweep_is_told_of_the_end_and_may_save(ray, tmp_path, name):
    saves = f"trap 'sleep 0.5; exit 75' {name}; touch notes/runs; while :; do sleep 0.1; done"
    process = ray(0, "10.0.0.1:20000", saves)
    wait_for_file(tmp_path / "notes" / "runs")
    process.send_signal(signal.Signals[f"SIG{name}"])
    said, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (75, f"SIG{name}: passed on to the training, to save and end\n")
    assert (tmp_path / "exit").read_text() == "75\n"


def test_a_sweep_that_has_not_begun_can_go_on(ray, tmp_path):
    process = ray(0, "10.0.0.1:20000", "touch notes/runs", GATHER="60")
    wait_for_file(tmp_path / "notes" / "ray")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 75
    assert (tmp_path / "exit").read_text() == "75\n"
    assert not (tmp_path / "notes" / "runs").exists()


def test_a_sweeps_other_nodes_join_the_first_and_end_with_it(ray, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as head:
        process = ray(1, f"127.0.0.1:{head.getsockname()[1]}")
        wait_for_file(tmp_path / "notes" / "ray")
        process.send_signal(signal.SIGTERM)  # of the first node
        time.sleep(1)
        assert process.poll() is None
        (tmp_path / "exit").write_text("0\n")
        time.sleep(2.5)
        assert process.poll() is None
    assert process.wait(timeout=PATIENCE) == 0
    assert " --address=127.0.0.1:" in (tmp_path / "notes" / "ray").read_text()


def test_a_sweeps_other_nodes_have_it_start_again_when_the_first_is_lost(ray, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as head:
        process = ray(1, f"127.0.0.1:{head.getsockname()[1]}")
        wait_for_file(tmp_path / "notes" / "ray")
    # A node that goes down may refuse connections before it is gone and Slurm notices.
    time.sleep(2.5)
    assert process.poll() is None
    (tmp_path / "notes" / "lost").touch()
    wait_for_file(tmp_path / "notes" / "requeue")
    process.send_signal(signal.SIGTERM)  # sent by Slurm
    said, _ = process.communicate(timeout=PATIENCE)
    assert "the job's first node is lost\n" in said
    assert "the job is requeued, time 1 of at most 100\n" in said
