"""slurm/job.sh: copies, ports, GPUs, failures, and requeuing."""

import dataclasses
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from distvae.config.load import load_config
from tests.conftest import PATIENCE, ROOT, wait_for_file
from tests.slurm.scripts import CONFIG, bash, stand_ins


def test_the_bases_of_a_config_are_copied_with_it(checkout):
    (checkout / "mine").mkdir()
    tiny = load_config(checkout / CONFIG, ["run=x"])
    (checkout / "mine" / "top.yaml").write_text("base: 'middle.yaml'  # first\n")
    (checkout / "mine" / "middle.yaml").write_text(f"base: {checkout / 'bottom.yaml'}\nseed: 5\n")
    (checkout / "bottom.yaml").write_text(f"seed: 3\nbase: {CONFIG}\n")
    done = bash("slurm/train.sh", "--copy", "runs/slurm/one", "mine/top.yaml", cwd=checkout)
    assert done.returncode == 0, done.stderr
    for path in ("mine/top.yaml", "mine/middle.yaml", "bottom.yaml", CONFIG):
        (checkout / path).unlink()
    copied = load_config(checkout / "runs/slurm/one/code/configs/top.yaml", ["run=x"])
    assert copied == dataclasses.replace(tiny, seed=5)


@pytest.mark.parametrize(
    "name",
    [
        "configs/tests/tiny.yaml",
        "configs/tiny.yaml",
        "mine/tiny.yaml",
        "tiny.v2.yaml",
        "old/configs/configs/a.yaml",
        "configs.yaml",
    ],
)
def test_a_copied_config_names_the_same_run(checkout, name):
    (checkout / name).parent.mkdir(parents=True, exist_ok=True)
    text = (checkout / CONFIG).read_text()
    (checkout / name).write_text(text)
    script = '. slurm/job.sh; take_copy "$1" "$2"; config_in_copy "$2"'
    for given in (name, str(checkout / name)):
        folder = f"runs/slurm/{'absolute' if given.startswith('/') else 'relative'}"
        done = bash("-c", script, "bash", folder, given, cwd=checkout)
        assert done.returncode == 0, done.stderr
        kept = Path(folder, "code", done.stdout.strip())
        assert (checkout / kept).read_text() == text
        assert load_config(checkout / kept).run == load_config(checkout / name).run


def test_without_a_checkout_the_installed_package_is_copied(checkout):
    for name in ("setup.cfg", "pyproject.toml", "distvae"):
        (checkout / name).rename(checkout.parent / name)
    (checkout / ".git").mkdir()  # the user's own, which says nothing about the code
    script = '. slurm/job.sh; take_copy runs/slurm/1 "$1"'
    done = bash("-c", script, "bash", CONFIG, cwd=checkout, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    code = checkout / "runs" / "slurm" / "1" / "code"
    assert (code / "distvae" / "train.py").read_bytes() == (ROOT / "distvae" / "train.py").read_bytes()
    assert {path.name for path in code.iterdir()} == {"configs", "distvae", "launch", "slurm"}
    done = bash(
        "-c", script.replace("/1", "/2"), "bash", CONFIG, cwd=checkout, PYTHONPATH="", PYTHONNOUSERSITE="1",
        PATH="/usr/bin:/bin",
    )  # fmt: skip
    assert (done.returncode, done.stderr.splitlines()[-1]) == (
        2, "distvae: distvae is not installed where slurm/env.sh finds Python",
    )  # fmt: skip
    assert not (checkout / "runs" / "slurm" / "2" / "code").exists()


def outside(low: int, high: int) -> tuple[int, int]:
    first, last = bash("-c", f". slurm/job.sh; ports_outside {low} {high}", cwd=ROOT).stdout.split()
    return int(first), int(last)


def test_ports_keep_away_from_those_that_the_kernel_hands_out():
    assert outside(32768, 60999) == (10240, 32767)
    assert outside(10240, 50000) == (50001, 65535)
    assert outside(1024, 65535) == (10240, 65535)


def port(job: int) -> int:
    done = bash("-c", ". slurm/job.sh; free_port", cwd=ROOT, SLURM_JOB_ID=str(job))
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_every_job_meets_at_a_port_of_its_own():
    first, second = port(4_001_234), port(4_001_235)
    assert first != second
    kernel = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    low, high = outside(*map(int, kernel))
    assert {first, second} <= set(range(low, high + 1))
    with socket.create_server(("", first)):
        assert port(4_001_234) not in (first, second)
    assert port(4_001_234) == first


TRACEBACK = """\
[rank{rank}]: Traceback (most recent call last):
[rank{rank}]: {error}
E1122 22:13:20.526000 438 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 1) local_rank: 0
Traceback (most recent call last):
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
"""

LOST = TRACEBACK.format(
    rank=0, error="RuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]"
)

KILLED = (
    "Traceback (most recent call last):\ntorch.distributed.elastic.multiprocessing.api.SignalException: Process 1\n"
)


@pytest.mark.parametrize(
    ("logs", "shown"),
    [
        ([LOST, TRACEBACK.format(rank=1, error="ValueError: the cause"), KILLED], "ValueError: the cause"),
        ([LOST, LOST + TRACEBACK.format(rank=3, error="KeyError: 'cause'")], "KeyError: 'cause'"),
        ([TRACEBACK.format(rank=0, error="queue.Empty")], "queue.Empty"),
        (["RuntimeError: the cause\n" + KILLED], "RuntimeError: the cause"),
        ([KILLED, "note\ndistvae: own.yaml: unknown key\n" + KILLED], "distvae: own.yaml: unknown key"),
        (
            [
                TRACEBACK.format(rank=0, error="DistBackendError: of another"),
                "distvae: WARNING slow\n" + KILLED + "distvae: own.yaml: unknown key\n",
            ],
            "distvae: own.yaml: unknown key",
        ),
    ],
)
def test_a_failure_begins_with_its_reason(tmp_path, logs, shown):
    for i, text in enumerate(logs):
        (tmp_path / f"n{i}.log").write_text("epochs …\n" + text)
    done = bash("-c", '. slurm/job.sh; show_failure "$1"', "bash", str(tmp_path), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    first, where, *excerpt = done.stderr.splitlines()
    assert first == (shown if shown.startswith("distvae: ") else f"distvae: failed: {shown}")
    assert where == f"(from {tmp_path}/n{[shown in text for text in logs].index(True)}.log)"
    # The traceback of an exception is shown, but not the launcher's output after it.
    if shown.startswith("distvae: "):
        assert excerpt == []
    else:
        assert excerpt in (["Traceback (most recent call last):", shown], [shown])


@pytest.mark.parametrize(
    ("logs", "shown"),
    [
        ([KILLED, LOST, "bash: accelerate: command not found\n"], "accelerate: command not found"),
        ([KILLED, "distvae/train.py FAILED: exitcode -9\n"], "exitcode -9"),
        ([LOST], "Connection closed by peer"),
        (["out of memory\n"], "out of memory"),
    ],
)
def test_the_log_that_tells_the_cause_is_shown(tmp_path, logs, shown):
    for i, text in enumerate(logs):
        (tmp_path / f"n{i}.log").write_text("epochs …\n" + text)
    done = bash("-c", '. slurm/job.sh; show_failure "$1"', "bash", str(tmp_path), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert shown in done.stderr
    log = f"{tmp_path}/n{[shown in text for text in logs].index(True)}.log"
    assert done.stderr.startswith(f"distvae: failed without an error message; the last lines of {log}:\n")


# Slurm's description of a job of two nodes.
GIVEN = """\
JobId=7 JobName=a NodeList=n[1-2] BatchHost=n1
   JOB_GRES=gpu:4
     Nodes={nodes} CPU_IDs=0-1 Mem=0 GRES={gres}
     Nodes={others} CPU_IDs=0 Mem=0 GRES={others_gres}
   MinCPUsNode=1 MinMemoryNode=0
   TresPerNode={asked}
"""


@pytest.mark.parametrize(
    ("gres", "others_gres", "asked", "found"),
    [
        ("gpu:2(IDX:0-1)", "gpu:2(IDX:0,3)", "", [2, 2]),
        ("gpu:2(IDX:0-1)", "gpu:1(IDX:0)", "", [2, 1]),
        ("gpu:2(IDX:0-1)", "(null)", "", [2, 0]),
        ("", "", "", [0, 0]),
        ("gpu:a100:2(IDX:0,3),gpu:v100:1(IDX:2),shard:9(IDX:1)", "gpu:3(S:0-1)", "", [3, 3]),
        # --exclusive gives all GPUs of a node, whatever was asked for.
        ("gpu:a100:4(IDX:0-3)", "gpu:a100:8(IDX:0-7)", "gres:gpu:a100:2", [2, 2]),
        ("gpu:4(IDX:0-3)", "gpu:4(IDX:0-3)", "gres/gpu", [1, 1]),
        ("gpu:4(IDX:0-3)", "gpu:4(IDX:0-3)", "gres:nvme:1", [4, 4]),
    ],
)
def test_gpus_are_those_that_the_job_was_given(checkout, gres, others_gres, asked, found):
    text = GIVEN.format(nodes="n1", gres=gres, others="n2", others_gres=others_gres, asked=asked)
    scontrol = "case $2 in hostnames) sed 's/n.1-2./n1\\nn2/' <<<\"$3\" ;; *) cat given ;; esac\n"
    (checkout / "given").write_text(text)
    programs = stand_ins(checkout, {"scontrol": scontrol})
    script = '. slurm/job.sh; find_gpus; echo "${gpus[n1]} ${gpus[n2]}"'
    slurm = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}
    done = bash("-c", script, cwd=checkout, **slurm)
    assert (done.stdout, done.stderr) == (f"{found[0]} {found[1]}\n", "")


@pytest.mark.parametrize(
    ("counts", "asks"), [((2, 2), "--gpus-per-node=2"), ((2, 1), "--gpus=3"), ((0, 0), None), ((0, 2), "refused")]
)
def test_a_step_asks_for_the_gpus_of_its_job(checkout, counts, asks):
    """Requests to sbatch are not passed on: with --exclusive they differ from what the job was given."""
    programs = stand_ins(checkout, {"srun": '{ printf "%s\\n" "$@"; env | grep ^SLURM_GPUS; } >words\n'})
    script = ". slurm/job.sh; gpus=([n1]=$1 [n2]=$2); on_every_node runs/one apart true"
    slurm = {"SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS": "4", "SLURM_GPUS_PER_NODE": "4", "SLURM_GPUS_PER_TASK": "4"}
    path = f"{programs}:{os.environ['PATH']}"
    done = bash("-c", script, "bash", *map(str, counts), cwd=checkout, PATH=path, **slurm)
    if asks == "refused":
        assert done.returncode == 2
        assert done.stderr.startswith("distvae: some nodes of the job have GPUs for it and some have none; ")
        assert not (checkout / "words").exists()
    else:
        words = (checkout / "words").read_text().splitlines()
        assert [word for word in words if "gpu" in word.lower()] == ([asks] if asks else [])


# Stand-ins for Slurm's commands. A request to requeue ends the script that makes it, as with Slurm.
SRUN = """\
#!/bin/bash
echo "$DISTVAE_EXIT_FILE" >>calls
[[ -z $SAID ]] || echo "$SAID" >"$DISTVAE_EXIT_FILE"
trap 'echo "srun: USR1" >>calls' USR1
for ((i = 0; i < ${STEPS:-0}; i++)); do sleep 0.1; done
exit "$STATUS"
"""

SCONTROL = """\
#!/bin/bash
case "$*" in
    "show hostnames "*) echo n1 ;;
    *"show job"*) echo "JobId=7 $JOB BatchFlag=1" ;;
    "requeue "*) echo "$*" >>calls; kill "$PPID"; sleep 1 ;;
esac
"""

RUNNING = "JobState=RUNNING Reason=None Requeue=1 Restarts=0"


@pytest.fixture
def job(checkout):
    """Starts slurm/train.sh as Slurm would. ``calls`` in the checkout lists the commands that it called."""
    programs = checkout / "programs"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def start(**environment: str) -> subprocess.Popen:
        given = {
            "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1",
            "SLURM_JOB_NUM_NODES": "1", "STATUS": "1", "SAID": "75", "JOB": RUNNING, **environment,
        }  # fmt: skip
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        return subprocess.Popen(
            ["bash", "slurm/train.sh", CONFIG],
            cwd=checkout, env=inherited | given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    return start


def calls(checkout: Path) -> list[str]:
    return (checkout / "calls").read_text().splitlines()


def test_an_interrupted_job_requeues_itself_and_waits_for_its_end(job, checkout):
    process = job()
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGTERM  # it did not end by itself, which would count as a failure
    assert calls(checkout) == ["runs/slurm/7/logs/exit", "requeue 7"]
    assert "the run was interrupted; the job is requeued, time 1 of at most 100\n" in said


@pytest.mark.parametrize(
    ("case", "code", "says"),
    [
        ({"SAID": "0", "STATUS": "0"}, 0, ""),
        ({"SAID": "2"}, 1, ""),
        ({"SAID": ""}, 1, ""),
        (
            {"JOB": "JobState=COMPLETING Reason=None Requeue=1 Restarts=0"},
            75,
            "the job was cancelled, or Slurm starts it",
        ),
        ({"JOB": "JobState=RUNNING Reason=None Requeue=1 Restarts=1"}, 75, "the job was cancelled, or Slurm starts it"),
        ({"JOB": "JobState=RUNNING Reason=None Requeue=0 Restarts=0"}, 75, "may not be requeued (--no-requeue)"),
        (
            {"JOB": "JobState=RUNNING Requeue=1 Restarts=100", "SLURM_RESTART_COUNT": "100"},
            75,
            "distvae: the run was interrupted; the job has been requeued 100 times, no more are allowed (max_requeues",
        ),
    ],
)
def test_a_job_that_is_not_to_be_requeued_ends(job, checkout, case, code, says):
    process = job(**case)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert says in said
    assert len(calls(checkout)) == 1


def test_what_an_earlier_start_said_counts_no_more(job, checkout):
    job(SAID="2").communicate(timeout=PATIENCE)
    (checkout / "runs" / "slurm" / "7" / "logs-1").mkdir()
    (checkout / "runs" / "slurm" / "7" / "logs-1" / "exit").write_text("75\n")
    process = job(SAID="", SLURM_RESTART_COUNT="1", JOB=RUNNING.replace("Restarts=0", "Restarts=1"))
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert calls(checkout) == ["runs/slurm/7/logs/exit", "runs/slurm/7/logs-1/exit"]


def test_the_sites_cap_on_requeues_is_the_jobs(job, checkout):
    with (checkout / "slurm" / "env.sh").open("a") as env:
        env.write("echo loading modules\nmax_requeues=2\n")
    at = {"SLURM_RESTART_COUNT": "1", "JOB": RUNNING.replace("Restarts=0", "Restarts=1")}
    (checkout / "runs" / "slurm" / "7").mkdir(parents=True)
    said, _ = job(**at).communicate(timeout=PATIENCE)
    assert "the job is requeued, time 2 of at most 2\n" in said
    at = {"SLURM_RESTART_COUNT": "2", "JOB": RUNNING.replace("Restarts=0", "Restarts=2")}
    said, _ = job(**at).communicate(timeout=PATIENCE)
    assert "the job has been requeued 2 times, no more are allowed" in said


def test_a_job_outlives_its_warnings(job, checkout):
    process = job(STEPS="20")
    wait_for_file(checkout / "calls")
    for number in (signal.SIGTERM, signal.SIGUSR1):
        time.sleep(0.3)
        process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert calls(checkout) == ["runs/slurm/7/logs/exit", "srun: USR1", "requeue 7"]
