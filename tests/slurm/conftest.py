"""Real Slurm clusters on this machine, and a checkout of the project to submit jobs from."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PATIENCE, ROOT, needs, wait_until

SCRIPT = Path(__file__).with_name("cluster")
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


@dataclass(frozen=True)
class SlurmJob:
    """A job as slurmctld reports it."""

    id: int
    state: str
    fields: dict[str, str]

    @property
    def log(self) -> str:
        """The output of its batch script."""
        return Path(self.fields["StdOut"]).read_text(encoding="utf-8")


class Cluster:
    """The nodes, and the commands of a user on the login node.

    Args:
        lab: the folder of all that the cluster writes.
        share: folders that the nodes see.
        size: number of nodes.
        extra: lines of slurm.conf.
    """

    def __init__(self, lab: Path, share: Sequence[Path], size: int = 2, extra: Sequence[str] = ()):
        # Other processes may run clusters, and this one may run another of another size.
        prefix = f"t{os.getpid()}x{size}n"
        self.nodes = [f"{prefix}{i}" for i in range(1, size + 1)]
        # Whether Slurm can bind processes to CPUs, as real clusters do: the nodes share the machine's first two.
        self.binds = {0, 1} <= os.sched_getaffinity(0)
        lines = [*extra, *(["TaskPlugin=task/affinity"] if self.binds else [])]
        settings = {"CPUS": "2", "EXTRA": "\n".join(lines)}
        # A user's shell has the Python environment on its path.
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        shared = " ".join(map(str, share))
        self.environment = {**os.environ, **settings, "LAB": str(lab), "PREFIX": prefix, "SHARE": shared, "PATH": path}

    def script(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
        return subprocess.run(
            [SCRIPT, *arguments], env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=PATIENCE
        )

    def run(self, *command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
        """Run a command on the login node."""
        return self.script("exec", *command, cwd=cwd)

    def submit(self, *command: str, cwd: Path) -> int:
        """Run a command that submits a job. Return the job's number."""
        done = self.run(*command, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return int(re.search(r"job (\d+)", done.stdout)[1])

    def job(self, number: int) -> SlurmJob:
        shown = self.run("scontrol", "show", "job", str(number)).stdout
        # A path has its own line, and may have spaces.
        paths = re.findall(r"^ *(StdOut|WorkDir)=(.*)", shown, flags=re.MULTILINE)
        fields = dict(re.findall(r"(\S+?)=(\S*)", shown) + paths)
        return SlurmJob(number, fields["JobState"], fields)

    def wait(self, number: int, until: Sequence[str] = tuple(ENDED)) -> SlurmJob:
        """Wait until a job is in one of these states."""
        states = {*until, *ENDED}
        job = self.wait_until(lambda: (job := self.job(number)).state in states and job, f"job {number} is in {states}")
        assert job.state in until, job.log
        return job

    def wait_until(self, condition: Callable[[], Any], what: str) -> Any:
        return wait_until(condition, what, self.told, every=0.3)

    def told(self) -> str:
        """The states and output of all jobs, and the processes of each node."""
        lines = []
        for number in self.run("squeue", "--states=all", "--noheader", "--format=%A").stdout.split():
            job = self.job(int(number))
            lines.append("-- " + " ".join(job.fields[name] for name in ("JobId", "JobState", "NodeList", "Restarts")))
            logs = Path(job.fields["WorkDir"], "runs", "slurm", number).glob("logs*/*.log")
            for log in filter(Path.exists, [Path(job.fields["StdOut"]), *sorted(logs)]):
                lines += [f"{log}:", log.read_text()[-3000:]]
        for node in self.nodes:
            lines += [f"-- {node}:", *(line[:300] for line in self.processes(node))]
        return "\n".join(lines)

    def processes(self, node: str) -> list[str]:
        """Full command lines (ww) of the processes on a node, except those of the node itself."""
        lines = self.script("on", node, "ps", "-eww", "-o", "args=").stdout.splitlines()
        own = re.compile(r"/bin/bash .*cluster _init|sleep 3600|munged |slurmd |slurmstepd: |ps -eww")
        return [line for line in lines if not own.match(line)]


@contextmanager
def bring_up(tmp_path_factory, size: int, extra: Sequence[str] = ()) -> Iterator[Cluster]:
    """A cluster of nodes of 2 CPUs and 2 GPUs each (which torch cannot use); they see what the tests write."""
    needs(os.geteuid() == 0, "a Slurm cluster needs root, to make its nodes")
    missing = [name for name in ("slurmctld", "slurmd", "munged", "ip", "nsenter", "unshare") if not found(name)]
    needs(not missing, f"a Slurm cluster needs {', '.join(missing)} (Debian: slurm-wlm munge iproute2)")
    spaces = subprocess.run(["unshare", "-m", "-n", "-u", "-i", "-p", "--fork", "true"], capture_output=True, text=True)
    needs(spaces.returncode == 0, f"this machine makes no namespaces: {spaces.stderr.strip()}")
    lab = tmp_path_factory.mktemp("slurm") / "lab"
    cluster = Cluster(lab, [tmp_path_factory.getbasetemp(), ROOT, Path(sys.prefix)], size, extra)
    up = cluster.script("up", str(size))
    assert up.returncode == 0, up.stderr
    try:
        yield cluster
    finally:
        cluster.script("down")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """Two nodes."""
    with bring_up(tmp_path_factory, size=2) as cluster:
        yield cluster


def found(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@pytest.fixture
def checkout(tiny, tmp_path) -> Path:
    """A copy of the checkout with configs/tests/tiny.yaml, which tests may damage."""
    return check_out(tmp_path, tiny)


def check_out(folder: Path, tiny: Path) -> Path:
    folder /= "check out"
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("distvae", "launch", "slurm"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    (folder / "configs" / "tests").mkdir(parents=True)
    shutil.copy(tiny, folder / "configs" / "tests" / "tiny.yaml")
    return folder
