"""Sweeps on a real cluster: the Ray cluster of each job, and what happens when nodes, the job or the sweep end.

The jobs run side by side, for most of their time is waiting. All but one run a stand-in for launch/sweep.py, whose
tasks are shorter than trials.
"""

import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.compare import records
from tests.slurm.conftest import Cluster, SlurmJob, bring_up, check_out
from tests.slurm.test_cluster import CONFIG, contain

pytestmark = pytest.mark.cluster

SWEEP = "configs/tests/sweep.yaml"

# Tasks in place of trials: each writes a file that names its node, and a restart does the remaining ones.
DRIVER = """\
import json, os, signal, socket, sys, time
from pathlib import Path
import ray, yaml

def main():
    tree = yaml.safe_load(Path(sys.argv[1]).read_text())
    tree |= {key: yaml.safe_load(value) for key, _, value in (word.partition("=") for word in sys.argv[2:])}
    if "bad" in tree:
        print(f"distvae: {sys.argv[1]}: unknown key bad", file=sys.stderr)
        return 2
    ray.init(log_to_driver=False, logging_level="ERROR")
    asked = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: asked.append(number))
    run = Path(tree["run"])
    run.mkdir(parents=True, exist_ok=True)
    (run / "base").write_text(Path(tree["base"]).read_text())
    has = {n["NodeManagerHostname"]: [n["Resources"].get(name, 0) for name in ("CPU", "GPU")] for n in ray.nodes()}
    (run / "nodes").write_text(json.dumps(has))

    @ray.remote(num_cpus=1, max_retries=-1, scheduling_strategy="SPREAD")
    def task(number):
        time.sleep(tree["seconds"])
        return number, number * tree["factor"], socket.gethostname()

    tasks = [task.remote(i) for i in range(tree["tasks"]) if not (run / f"{i}.json").exists()]
    while (tasks or (tree["hold"] and not (run / "go").exists())) and not asked:
        done, tasks = ray.wait(tasks, timeout=0.3) if tasks else (time.sleep(0.3) or [], [])
        for number, value, node in ray.get(done):
            with (run / f"{number}.json").open("x") as file:  # once
                json.dump([value, node, int(os.environ.get("SLURM_RESTART_COUNT", 0))], file)
    return 75 if asked else 0

code = main()
Path(os.environ["DISTVAE_EXIT_FILE"]).write_text(f"{code}\\n")
sys.exit(code)
"""

# Slow batches down without using the machine's cores.
SLOW = """

def collate(*arguments, whole=collate):
    __import__("time").sleep(0.4)
    return whole(*arguments)
"""

# A client that knows the cluster's address, but not its token.
STRANGER = "import ray; ray.init(address={!r}, logging_level='ERROR')"


@dataclass
class Sweeps:
    """The jobs, by the names of their sweeps."""

    cluster: Cluster
    stand_in: Path  # a checkout with the above as launch/sweep.py
    real: Path
    marker: Path  # the record of the stand-in's container
    numbers: dict[str, int] = field(default_factory=dict)
    first_nodes: dict[str, list[str]] = field(default_factory=dict)
    saved: set[str] = field(default_factory=set)  # the trials that had saved an epoch on the node that is lost

    def submit(self, name: str, *options: str, words: tuple[str, ...] = ()) -> None:
        checkout = self.real if name == "real" else self.stand_in
        command = ["sbatch", *options, "slurm/sweep.sh", SWEEP, f"run=runs/{name}", *words]
        self.numbers[name] = self.cluster.submit(*command, cwd=checkout)

    def nodes(self, name: str) -> list[str]:
        """The nodes that a job has now."""
        return self.cluster.run("scontrol", "show", "hostnames", self.job(name).fields["NodeList"]).stdout.split()

    def run(self, name: str) -> Path:
        return (self.real if name == "real" else self.stand_in) / "runs" / name

    def results(self, name: str) -> dict[int, list]:
        """The results of a sweep's tasks: value, node and start of the job."""
        return {int(path.stem): json.loads(path.read_text()) for path in self.run(name).glob("*.json")}

    def starts(self) -> dict[str, list[str]]:
        """The hosts on which each trial has been started."""
        found = {}
        for run in self.run("real").glob("trials/*"):
            starts = sorted(run.glob("starts/*.json"))
            found[run.name] = [json.loads(start.read_text())["host"] for start in starts]
        return found

    def look_on(self, node: str) -> set[str]:
        """Find the trials that have saved an epoch on a node and are still running there."""
        saved = {checkpoint.parts[-3] for checkpoint in self.run("real").glob("trials/*/checkpoints/*-epoch-0001")}
        self.saved = {number for number, hosts in self.starts().items() if hosts == [node] and number in saved}
        return self.saved

    def folder(self, name: str) -> Path:
        """The job's."""
        return self.run(name).parent / "slurm" / str(self.numbers[name])

    def job(self, name: str) -> SlurmJob:
        return self.cluster.job(self.numbers[name])

    def end(self, name: str) -> SlurmJob:
        """The job once it has ended, possibly after several starts."""
        return self.cluster.wait(self.numbers[name])

    def left(self, *nodes: str) -> list[str]:
        """What jobs may have left on nodes: processes, and Ray's files."""
        found = []
        for node in nodes:
            files = self.cluster.script("on", node, "ls", "/tmp", "/dev/shm").stdout.split()
            found += self.cluster.processes(node) + [file for file in files if "ray" in file or "pymp" in file]
        return found


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory, tiny) -> Iterator[Sweeps]:
    """Sweeps on all nodes. Two of them have just lost a node."""
    with bring_up(tmp_path_factory, size=6, extra=["KillWait=30"]) as cluster:
        stand_in, real = (check_out(tmp_path_factory.mktemp(name), tiny) for name in ("stand-in", "real"))
        (stand_in / "launch" / "sweep.py").write_text(DRIVER)
        (stand_in / "slurm" / "check.py").write_text("")  # the stand-in's settings are not those of a sweep
        (stand_in / SWEEP).write_text(f"base: '{CONFIG}'  # a tiny one\ntasks: 6\nseconds: 1\nfactor: 1\nhold: false\n")
        with (real / "distvae" / "data" / "batches.py").open("a") as module:
            module.write(SLOW)
        grids = "space:\n  kl.target_rate: {grid: [0.2, 0.3, 0.4, 0.5]}\n  kl.multiplier: {grid: [0.1, 0.2]}\n"
        (real / SWEEP).write_text(f"base: {CONFIG}\n{grids}finalists: {{count: 0}}\n")
        marker = contain(stand_in, tmp_path_factory.mktemp("container"))
        sweeps = Sweeps(cluster, stand_in, real, marker)
        two = ",".join(cluster.nodes[:2])
        both = [f"--nodelist={two}", "--nodes=2", "--gpus-per-node=1"]
        sweeps.submit("one", *both, words=("hold=true", "factor=3"))
        sweeps.submit("other", *both, words=("hold=true", "factor=5"))
        for name in ("one", "other"):  # four clusters that start at once are so slow that Ray gives up on one
            cluster.wait_until((sweeps.run(name) / "nodes").exists, f"{name} runs")
        others = [f"--exclude={two}", "--nodes=1-2", "--cpus-per-task=2"]
        sweeps.submit("real", *others)
        sweeps.submit("beheaded", *others, words=("hold=true", "tasks=16", "seconds=3"))
        lost = {"real": 1, "beheaded": 0}  # which of its nodes
        happens = {"real": sweeps.look_on, "beheaded": lambda node: len(sweeps.results("beheaded")) >= 3}

        def both_have_lost_theirs() -> bool:
            for name in list(happens):
                sweeps.first_nodes[name] = nodes = sweeps.nodes(name)
                if nodes and happens[name](nodes[lost[name]]):
                    assert cluster.script("stop", nodes[lost[name]]).returncode == 0
                    del happens[name]
            return not happens

        cluster.wait_until(both_have_lost_theirs, "two sweeps have got far enough to lose a node")
        (sweeps.run("beheaded") / "go").touch()
        yield sweeps


def test_a_sweep_goes_on_without_a_lost_node(sweeps):
    left, lost = sweeps.first_nodes["real"]
    sweeps.cluster.wait_until(
        lambda: [lost, left] in [hosts for number, hosts in sweeps.starts().items() if number in sweeps.saved],
        "a trial goes on elsewhere",
    )
    job = sweeps.job("real")
    assert (job.state, job.fields["Restarts"], job.fields["NodeList"]) == ("RUNNING", "0", left)
    # A test below checks the outcome.
    assert sweeps.cluster.run("scontrol", "requeue", str(job.id)).returncode == 0


def test_two_sweeps_on_the_same_nodes_do_not_meet(sweeps):
    cluster = sweeps.cluster
    names = {"one": 3, "other": 5}
    (sweeps.stand_in / CONFIG).write_text("spoilt: [")  # the jobs have copies, also of the sweep's base config
    for name, factor in names.items():
        cluster.wait_until(lambda name=name: len(sweeps.results(name)) == 6, f"{name}'s tasks")
        assert [sweeps.results(name)[i][0] for i in range(6)] == [i * factor for i in range(6)]
        # Both nodes took part, with the resources that Slurm gave there.
        assert {node for _, node, _ in sweeps.results(name).values()} == set(cluster.nodes[:2])
        assert json.loads((sweeps.run(name) / "nodes").read_text()) == {node: [1, 1] for node in cluster.nodes[:2]}
        assert "data:" in (sweeps.run(name) / "base").read_text()

    head, (job, other) = cluster.nodes[0], map(sweeps.job, names)
    assert job.state == other.state == "RUNNING"
    dashboards = []
    for said in (job.log, other.log):
        port = re.search(rf"ssh -L 8265:localhost:(\d+) \w+@{head}; ", said)[1]
        token = Path(re.search(r"the token in (.*)\n", said)[1])
        assert token.stat().st_mode & 0o777 == 0o600
        asks = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://localhost:{port}/api/version"]
        assert cluster.script("on", head, *asks).stdout == "401"
        given = ["-H", f"Authorization: Bearer {token.read_text()}"]
        assert cluster.script("on", head, *asks, *given).stdout == "200"
        dashboards.append((port, token.read_text()))
    assert len({port for port, _ in dashboards}) == len({token for _, token in dashboards}) == 2
    address = re.search(r"Ray meets at (.*)", job.log)[1]
    done = cluster.script("on", head, "timeout", "50", sys.executable, "-c", STRANGER.format(address))
    assert done.returncode != 0

    # The end of one does not end the other.
    (sweeps.run("one") / "go").touch()
    assert (sweeps.end("one").state, sweeps.job("other").state) == ("COMPLETED", "RUNNING")
    asks = ["curl", "-s", "-H", f"Authorization: Bearer {dashboards[1][1]}", "-o", "/dev/null", "-w", "%{http_code}"]
    assert cluster.script("on", head, *asks, f"http://localhost:{dashboards[1][0]}/api/version").stdout == "200"
    # Ray is started again on a node where it ends.
    log, ended = sweeps.folder("other") / "logs" / f"{cluster.nodes[1]}.log", f"Ray has ended on {cluster.nodes[1]} "
    times = log.read_text().count(ended)  # Ray may also end by itself while the machine is busy
    kill = ("on", cluster.nodes[1], "pkill", "-KILL", "--exact", "raylet")
    cluster.wait_until(lambda: cluster.script(*kill).returncode == 0, "Ray runs")
    cluster.wait_until(lambda: log.read_text().count(ended) > times, "the end of Ray is seen")
    cluster.wait_until(lambda: "/raylet " in "".join(cluster.processes(cluster.nodes[1])), "Ray runs again")
    assert sweeps.job("other").state == "RUNNING"
    # It can resume in a job that was asked to end.
    cluster.run("scancel", "--signal=USR1", str(sweeps.numbers["other"]))
    cluster.wait_until(lambda: sweeps.job("other").fields["Restarts"] == "1", "the job is requeued")
    (sweeps.run("other") / "go").touch()
    job = sweeps.end("other")
    assert (job.state, job.log.count("; the job is requeued, time 1 of at most 100\n")) == ("COMPLETED", 1)
    cluster.wait_until(lambda: not sweeps.left(*cluster.nodes[:2]), "nothing is left")
    assert not list(sweeps.folder("one").glob("token"))

    # The site's container ran everything.
    ran = sweeps.marker.read_text().splitlines()
    for node in cluster.nodes[:2]:
        ray = rf"{node}; .* ray --block .*--temp-dir=/tmp/distvae-ray-{job.id}\.\w+/ray "
        assert any(re.match(ray, line) for line in ran)
    assert any(re.match(rf"{head}; .* python3 .*/launch/sweep\.py ", line) for line in ran)


def test_a_bad_sweep_ends_with_one_line(sweeps):
    sweeps.submit("bad", f"--nodelist={sweeps.cluster.nodes[0]}", words=("bad=1",))
    job = sweeps.end("bad")
    assert (job.state, job.fields["ExitCode"]) == ("FAILED", "2:0")
    folder = sweeps.folder("bad").relative_to(sweeps.stand_in)
    assert job.log.endswith(
        f"distvae: {folder}/code/{SWEEP}: unknown key bad\n(from {folder}/logs/{job.fields['NodeList']}.log)\n"
    )


def test_a_cancelled_sweep_leaves_nothing(sweeps):
    nodes = sweeps.cluster.nodes[:2]
    sweeps.submit("cancelled", f"--nodelist={','.join(nodes)}", "--nodes=2", words=("seconds=10000", "tasks=2"))
    sweeps.cluster.wait_until((sweeps.run("cancelled") / "nodes").exists, "the sweep runs")
    time.sleep(1)
    sweeps.cluster.run("scancel", str(sweeps.numbers["cancelled"]))
    job = sweeps.end("cancelled")
    assert job.state == "CANCELLED"
    sweeps.cluster.wait_until(lambda: not sweeps.left(*nodes), "nothing is left")
    assert (sweeps.folder("cancelled") / "logs" / "exit").read_text() == "75\n"  # it was able to save


def test_a_sweep_that_loses_its_first_node_starts_again(sweeps):
    job = sweeps.end("beheaded")
    assert (job.state, job.fields["ExitCode"], job.fields["Restarts"]) == ("COMPLETED", "0:0", "1"), job.log
    results = sweeps.results("beheaded")
    assert {number: value for number, (value, _, _) in results.items()} == {i: i for i in range(16)}
    assert {start for _, _, start in results.values()} == {0, 1}
    said = (sweeps.folder("beheaded") / "logs" / f"{sweeps.first_nodes['beheaded'][1]}.log").read_text()
    assert said.startswith(
        "the job's first node is lost\nthe run was interrupted; the job is requeued, time 1 of at most"
    )


def test_a_requeued_sweep_does_every_trial_once(sweeps):
    job = sweeps.end("real")
    assert (job.state, job.fields["ExitCode"], job.fields["Restarts"]) == ("COMPLETED", "0:0", "1"), job.log
    starts = sweeps.starts()
    assert sorted(starts) == [f"{number:04d}" for number in range(8)]
    for number in starts:
        run = sweeps.run("real") / "trials" / number
        assert json.loads((run / "status.json").read_text())["state"] == "finished"
        # Every epoch appears once and in order, wherever it was trained.
        assert [(record["stage"], record["epoch"]) for record in records(run)] == [("train", i) for i in range(1, 5)]
    # Trials that had saved an epoch on the lost node resumed from it, one of them again when the job was requeued.
    assert max(len(starts[number]) for number in sweeps.saved) > 2
    for number in sweeps.saved:
        first, *_, last = [record["start"] for record in records(sweeps.run("real") / "trials" / number)]
        assert (starts[number][0], first) == (sweeps.first_nodes["real"][1], 1)
        assert last > 1
