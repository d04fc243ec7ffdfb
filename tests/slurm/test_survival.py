"""Jobs that are asked to end, preempted, cancelled, or lose a node: each run ends as if nothing had happened.

All jobs run at once, for most of their time is waiting. The first start of each is too slow to finish; later ones are
not.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.compare import numbers, records
from tests.conftest import fork
from tests.slurm.conftest import Cluster, SlurmJob, bring_up, check_out
from tests.slurm.test_cluster import CONFIG

pytestmark = pytest.mark.cluster

# The first start trains an epoch, then slows down.
SLOW = """

def collate(*arguments, whole=collate, calls=[]):
    import os, time
    calls.append(None)
    if "SLURM_RESTART_COUNT" not in os.environ:
        time.sleep(2 if len(calls) > 15 else 0.1)
    return whole(*arguments)
"""

# The time that a cancelled or preempted job has left, as on most clusters; and partitions that `main` preempts, with
# and without a grace time.
SETTINGS = ["KillWait=30"] + [
    f"PartitionName={name} Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime={seconds}"
    for name, seconds in (("graceful", 90), ("graceless", 0))
]


@dataclass
class Jobs:
    """The jobs, by the names of their runs."""

    cluster: Cluster
    checkout: Path
    numbers: dict[str, int] = field(default_factory=dict)
    first_nodes: dict[str, list[str]] = field(default_factory=dict)

    def run(self, name: str) -> Path:
        return self.checkout / "runs" / name

    def log(self, name: str, start: int) -> str:
        """The log of a job's node in one of its starts, counted from 0."""
        logs = self.checkout / "runs" / "slurm" / str(self.numbers[name]) / (f"logs-{start}" if start else "logs")
        (log,) = logs.glob("*.log")
        return log.read_text()

    def submit(self, name: str, *options: str, checkout: Path | None = None) -> None:
        where = checkout or self.checkout
        run = f"run={self.run(name)}"
        self.numbers[name] = self.cluster.submit("sbatch", *options, "slurm/train.sh", CONFIG, run, cwd=where)

    def end(self, name: str) -> SlurmJob:
        """The job once it has ended, possibly after several starts."""
        return self.cluster.wait(self.numbers[name])

    def ended_well(self, name: str, alone: Path) -> SlurmJob:
        """Check that a job ended with the numbers of an uninterrupted run."""
        job = self.end(name)
        assert (job.state, job.fields["ExitCode"]) == ("COMPLETED", "0:0"), job.log
        run = self.run(name)
        assert json.loads((run / "status.json").read_text())["state"] == "finished"
        assert digest(run) == digest(alone)
        assert numbers(run) == numbers(alone)
        # It resumed, and did not start over.
        starts = [record["start"] for record in records(run)]
        assert starts == sorted(starts)
        assert 1 == starts[0] < starts[-1]
        return job


def digest(run: Path) -> str:
    return hashlib.sha256((run / "best" / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, tiny) -> Iterator[Jobs]:
    """Jobs in the middle of their runs, each just after something has happened to it."""
    with bring_up(tmp_path_factory, size=8, extra=SETTINGS) as cluster:
        checkouts = [check_out(tmp_path_factory.mktemp(name), tiny) for name in ("survival", "capped")]
        for checkout in checkouts:
            with (checkout / "distvae" / "data" / "batches.py").open("a") as module:
                module.write(SLOW)
        with (checkouts[1] / "slurm" / "env.sh").open("a") as env:
            env.write("max_requeues=0\n")
        jobs = Jobs(cluster, checkouts[0])
        jobs.submit("pulled", "--nodes=2", "--cpus-per-task=2")
        jobs.submit("haunted", "--cpus-per-task=2")
        jobs.submit("pushed", "--cpus-per-task=2", "--partition=graceful")
        jobs.submit("shoved", "--cpus-per-task=2", "--partition=graceless")
        jobs.submit("timed")
        jobs.submit("cancelled")
        jobs.submit("capped", checkout=checkouts[1])
        waiting = set(jobs.numbers)

        def all_have_happened() -> bool:
            for name in sorted(waiting):
                if any((jobs.run(name) / "checkpoints").glob("*-epoch-0001")):
                    waiting.remove(name)
                    happen(jobs, name)
            return not waiting

        cluster.wait_until(all_have_happened, "all jobs train")
        yield jobs


def happen(jobs: Jobs, name: str) -> None:
    """Something happens to a job that trains."""
    cluster, number = jobs.cluster, jobs.numbers[name]
    hosts = cluster.job(number).fields["NodeList"]
    jobs.first_nodes[name] = cluster.run("scontrol", "show", "hostnames", hosts).stdout.split()
    if name == "pulled":
        done = cluster.script("stop", jobs.first_nodes[name][1])
    elif name == "haunted":
        # Slurm takes the node for dead, but its processes live on.
        done = cluster.script("on", jobs.first_nodes[name][0], "bash", "-c", "kill -9 $(pidof slurmd)")
    elif name in ("pushed", "shoved"):
        pushing = ["--partition=main", "--cpus-per-task=2", f"--nodelist={hosts}", "--output=/dev/null"]
        done = cluster.run("sbatch", *pushing, "--wrap=sleep 1")
    elif name == "timed":
        # Its signal is due two minutes before the limit, which is at once.
        done = cluster.run("scontrol", "update", f"JobId={number}", "TimeLimit=3")
    elif name == "cancelled":
        done = cluster.run("scancel", str(number))
    elif name == "capped":
        done = cluster.run("scancel", "--signal=USR1", str(number))
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def finished_by_two(tiny, tmp_path_factory) -> Path:
    """The folder of a finished run of the whole recipe by two processes."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    codes, told = fork(run.parent, [{"processes": 2, "runs": [[str(tiny), f"run={run}"]]}])
    assert codes == [[0, 0]], told
    return run


def test_a_job_goes_on_after_its_time_limit(jobs, finished):
    number = jobs.numbers["timed"]
    jobs.cluster.wait_until(lambda: jobs.cluster.job(number).fields["Restarts"] != "0", "the job is requeued")
    jobs.cluster.run("scontrol", "update", f"JobId={number}", "TimeLimit=30")
    job = jobs.ended_well("timed", finished)
    assert "SIGUSR1: passed on to the training" in jobs.log("timed", 0)
    # Its log covers all starts.
    assert "; the job is requeued, time 1 of at most 100\n" in job.log
    assert job.log.count("a log of each node: ") == 2


def test_a_job_pushed_aside_saves_and_comes_back(jobs, finished):
    job = jobs.ended_well("pushed", finished)
    assert job.fields["Restarts"] == "1"
    # It makes room once it has saved, before its grace time is over.
    assert job.log.count("; the job is requeued, time 1 of at most 100\n") == 1
    # No step is trained twice.
    first, second = (jobs.log("pushed", start) for start in (0, 1))
    stopped = re.search(r"interrupted at step (\d+) by SIGTERM", first)[1]
    assert re.search(r"resuming from .*: step (\d+),", second)[1] == stopped


def test_a_job_pushed_aside_without_grace_comes_back(jobs, finished):
    job = jobs.ended_well("shoved", finished)
    assert job.fields["Restarts"] == "1"
    assert "; the job is requeued" not in job.log  # Slurm has already requeued it


def test_a_job_that_loses_a_node_goes_on_on_others(jobs, finished_by_two):
    job = jobs.ended_well("pulled", finished_by_two)
    assert job.fields["Restarts"] == "1"
    last = jobs.cluster.run("scontrol", "show", "hostnames", job.fields["NodeList"]).stdout.split()
    assert jobs.first_nodes["pulled"][1] not in last


def test_a_job_on_a_node_that_only_seemed_dead_gives_way_to_its_successor(jobs, finished):
    job = jobs.ended_well("haunted", finished)
    assert job.fields["Restarts"] == "1"
    (node,) = jobs.first_nodes["haunted"]
    assert job.fields["NodeList"] != node
    jobs.cluster.wait_until(lambda: not jobs.cluster.processes(node), "the former start has ended")
    assert "attempt 2 has taken over; attempt 1 stops and writes nothing more" in jobs.log("haunted", 0)
    # Its end does not count as the job's.
    assert jobs.end("haunted").fields["ExitCode"] == "0:0"


def test_a_job_cancelled_ends_for_good(jobs):
    job = jobs.end("cancelled")
    assert job.state == "CANCELLED"
    # Its run was saved nevertheless.
    status = json.loads((jobs.run("cancelled") / "status.json").read_text())
    assert (status["state"], status["start"]) == ("interrupted", 1)
    assert "SIGTERM" in status["reason"]


def test_a_job_requeues_itself_so_often_and_no_more(jobs):
    job = jobs.end("capped")
    assert (job.state, job.fields["ExitCode"], job.fields["Restarts"]) == ("FAILED", "75:0", "0")
    assert "distvae: the run was interrupted; the job has been requeued 0 times, no more are" in job.log
