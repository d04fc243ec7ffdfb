"""Jobs on a real cluster: what a user's sbatch does, from submission to exit code."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.compare import assert_same_numbers

pytestmark = pytest.mark.cluster

CONFIG = "configs/tests/tiny.yaml"

# A command that runs the program, like a container. It records where it runs, on which CPUs, and what.
CONTAINER = """\
#!/bin/bash
words=$*
echo "$SLURMD_NODENAME; CPUs $(taskset -cp $$ | sed 's/.*: //'); ${{words//$'\\n'/ }}" >>"{marker}"
exec "$@"
"""

# One rank raises during training, while another hangs for longer than this test waits, and does not notice.
BREAK = """

def _break(self, values, whole=Runtime.sum, calls=[]):
    calls.append(None)
    if len(calls) == 7:
        if self.rank == 1:
            raise RuntimeError("this rank breaks on purpose")
        __import__("time").sleep(10_000)
    return whole(self, values)


Runtime.sum = _break
"""


def contain(checkout: Path, tmp_path: Path) -> Path:
    """Set a container in env.sh. Return the file in which it records what it ran."""
    script, marker = tmp_path / "contain er", tmp_path / "contained"
    script.write_text(CONTAINER.format(marker=marker))
    script.chmod(0o755)
    with (checkout / "slurm" / "env.sh").open("a") as env:
        env.write(f'container=("{script}")\n')
    return marker


def logs_of(job, checkout) -> Path:
    return checkout / re.search(r"a log of each node: (.*)/", job.log)[1]


def test_two_jobs_on_the_same_nodes_each_have_the_numbers_of_one_process(cluster, checkout, finished, tmp_path):
    one = cluster.submit("sbatch", "--nodes=2", "slurm/train.sh", CONFIG, cwd=checkout)
    cluster.wait_until((checkout / "runs" / "slurm" / str(one) / "code").exists, "the job has its copy")
    marker = contain(checkout, tmp_path)
    submit = ["bash", "slurm/submit.sh", "--nodes=2", "--gpus-per-node=2", "train", CONFIG, "run=runs/four"]
    other = cluster.submit(*submit, cwd=checkout)
    cluster.wait(other, until=["RUNNING"])
    assert cluster.job(one).state == "RUNNING"  # while the other runs

    jobs = [cluster.wait(number) for number in (one, other)]
    for job, run, processes in zip(jobs, ("tests/tiny", "four"), (2, 4), strict=True):
        assert (job.state, job.fields["ExitCode"]) == ("COMPLETED", "0:0"), job.log
        assert {log.stem for log in logs_of(job, checkout).glob("*.log")} == set(cluster.nodes)
        assert_same_numbers(finished, checkout / "runs" / run, world_size=processes)
    assert logs_of(jobs[0], checkout) == checkout / "runs" / "slurm" / str(one) / "logs"
    # The site's container ran on both nodes, as the machine of that rank.
    check, *ran = sorted(marker.read_text().splitlines(), key=lambda line: "accelerate launch" in line)
    assert "slurm/check.py" in check
    assert len(ran) == 2
    for rank, (node, line) in enumerate(zip(cluster.nodes, sorted(ran), strict=True)):
        assert re.match(rf"{node}; .*; python3 .* accelerate launch --machine_rank {rank} .*/distvae/train\.py ", line)


def test_an_engine_spans_the_nodes(cluster, checkout, finished):
    number = cluster.submit("sbatch", "--nodes=2", "slurm/train.sh", "--engine", "zero2", CONFIG, cwd=checkout)
    job = cluster.wait(number)
    assert (job.state, job.fields["ExitCode"]) == ("COMPLETED", "0:0"), job.log
    assert "2 processes by ZeRO-2 on CPU" in (logs_of(job, checkout) / f"{cluster.nodes[0]}.log").read_text()
    assert_same_numbers(finished, checkout / "runs" / "tests" / "tiny", world_size=2)


def test_a_waiting_job_runs_what_was_submitted(cluster, checkout, finished, tmp_path):
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "as submitted"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    marker = contain(checkout, tmp_path)
    with (checkout / "slurm" / "env.sh").open("a") as env:
        env.write("partition=low\n")
    submit = [
        "bash",
        "slurm/submit.sh",
        "--hold",
        "--cpus-per-task=2",
        "--hint=nomultithread",
        "--time=9",
        "--job-name=train",
    ]
    number = cluster.submit(*submit, "train", "--processes-per-node", "2", CONFIG, cwd=checkout)
    held = cluster.job(number)
    assert held.state == "PENDING"
    assert held.fields["Partition"] == "low"
    assert (held.fields["JobName"], held.fields["TimeLimit"], held.fields["NumNodes"]) == ("train", "00:09:00", "1")

    for path in checkout.rglob("*"):  # damage the whole checkout
        if path.is_file() and not {"runs", ".git"} & set(path.relative_to(checkout).parts):
            path.write_text("exit 9 [\n")
    assert cluster.run("scontrol", "release", str(number)).returncode == 0
    job = cluster.wait(number)
    assert job.state == "COMPLETED", job.log
    run = checkout / "runs" / "tests" / "tiny"
    assert_same_numbers(finished, run, world_size=2)
    assert json.loads((run / "environment.json").read_text())["commit"] == f"{commit}-dirty"  # of env.sh
    if cluster.binds:
        # By default srun binds a step's one task to one CPU under this hint.
        assert "; CPUs 0,1; " in marker.read_text()


def test_options_given_to_submit_win_and_a_refused_job_leaves_nothing(cluster, checkout):
    with (checkout / "slurm" / "env.sh").open("a") as env:
        env.write("partition=low\naccount=payer\n")
    number = cluster.submit("bash", "slurm/submit.sh", "--hold", "--partition=main", "train", CONFIG, cwd=checkout)
    job = cluster.job(number)
    cluster.run("scancel", str(number))
    assert (job.fields["Partition"], job.fields["Account"]) == ("main", "payer")
    folders = list((checkout / "runs" / "slurm").iterdir())
    assert len(folders) == 1
    assert Path(job.fields["StdOut"]) == folders[0] / f"{number}.log"

    for option, status in (("--partition=nowhere", 1), ("--test-only", 0)):
        done = cluster.run("bash", "slurm/submit.sh", option, "train", CONFIG, cwd=checkout)
        assert done.returncode == status
        assert done.stdout == ""
        assert list((checkout / "runs" / "slurm").iterdir()) == folders


@pytest.mark.parametrize("options", [[], ["--nodes=2", "--gpus-per-node=2", "--time=5", "--open-mode=truncate"]])
def test_slurm_would_take_the_script(cluster, checkout, options):
    done = cluster.run("sbatch", "--test-only", *options, "slurm/train.sh", CONFIG, cwd=checkout)
    assert done.returncode == 0, done.stderr


def test_a_failing_rank_fails_the_job_with_its_traceback(cluster, checkout):
    with (checkout / "distvae" / "distributed" / "runtime.py").open("a") as module:
        module.write(BREAK)
    number = cluster.submit("sbatch", "--nodes=2", "--cpus-per-task=2", "slurm/train.sh", CONFIG, cwd=checkout)
    job = cluster.wait(number)
    assert (checkout / "runs" / "tests" / "tiny" / "metrics.jsonl").exists()  # it has trained
    assert job.state == "FAILED"
    assert job.fields["ExitCode"] != "0:0"
    reason = "RuntimeError: this rank breaks on purpose\n"
    log = f"{logs_of(job, checkout).relative_to(checkout)}/{cluster.nodes[1]}.log"
    assert f"\ndistvae: failed: {reason}(from {log})\nTraceback (most recent call last):\n" in job.log
    assert "in _break" in job.log
    assert job.log.endswith(f"\n{reason}")
    assert [cluster.processes(node) for node in cluster.nodes] == [[], []]


def test_a_requeued_job_runs_the_same_copy_and_bad_input_ends_it_with_one_line(cluster, checkout):
    data = "data.path=/no/where"
    number = cluster.submit("sbatch", "--cpus-per-task=2", "slurm/train.sh", CONFIG, data, cwd=checkout)
    folder = checkout / "runs" / "slurm" / str(number)
    cluster.wait_until((folder / "logs").exists, "the job has begun")
    (checkout / CONFIG).write_text("seed: [\n")
    (checkout / "slurm" / "job.sh").write_text("exit 9\n")
    assert cluster.run("scontrol", "requeue", str(number)).returncode == 0
    cluster.wait(number, until=["PENDING"])
    cluster.wait(number, until=["RUNNING"])
    job = cluster.wait(number)
    assert job.state == "FAILED"
    line = f"distvae: {data}: no such file or folder, "
    assert job.log.count(line) == 1
    assert job.log.split("a log of each node: ")[-1].startswith(f"runs/slurm/{number}/logs-1/\n")
    status = json.loads((checkout / "runs" / "tests" / "tiny" / "status.json").read_text())
    assert f"distvae: {status['reason']}\n(from runs/slurm/{number}/logs-1/" in job.log
    assert status["reason"].startswith(line.removeprefix("distvae: "))


def test_bad_input_ends_a_job_as_it_starts(cluster, checkout):
    number = cluster.submit("sbatch", "--nodes=2", "slurm/train.sh", CONFIG, "kl.target=1", cwd=checkout)
    job = cluster.wait(number)
    assert (job.state, job.fields["ExitCode"]) == ("FAILED", "2:0")
    assert job.log == f"distvae: {CONFIG}: unknown key kl.target; did you mean kl.target_rate?\n"
    assert not (checkout / "runs").exists()


def test_nodes_with_unequal_gpus_are_refused(cluster, checkout):
    number = cluster.submit("sbatch", "--nodes=2", "--gpus=3", "slurm/train.sh", CONFIG, cwd=checkout)
    job = cluster.wait(number)
    assert job.state == "FAILED"
    first, second = cluster.nodes
    assert job.log == (
        f"distvae: the job has 1 GPUs on {second} and 2 on {first};"
        " ask for the same number on each node with --gpus-per-node=N\n"
    )


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        (["--ntasks-per-node=2", "--gpus-per-task=1"], "0,1"),
        (["--gpus-per-node=2", "--ntasks-per-gpu=1"], "0,1"),
        # All GPUs of the nodes, unless a number is requested.
        (["--exclusive"], "0,1"),
        (["--exclusive", "--gpus-per-node=1"], "0"),
        (["--exclusive", "--gres=gpu:1"], "0"),
        # A node may show its GPUs to a job that was given none.
        (["--cpus-per-task=2"], ""),
    ],
)
def test_gpus_of_the_job_all_serve_the_nodes_one_launcher(cluster, checkout, options, gpus):
    # The checkout's own environment takes precedence over PATH. Its launcher only prints its arguments.
    programs = checkout / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f'PATH="{programs}:$PATH"\n')
    (programs / "accelerate").write_text('#!/bin/bash\necho "launcher: $*, GPUs $CUDA_VISIBLE_DEVICES"\n')
    (programs / "accelerate").chmod(0o755)
    job = cluster.wait(cluster.submit("sbatch", "--nodes=2", *options, "slurm/train.sh", CONFIG, cwd=checkout))
    assert job.state == "COMPLETED", job.log
    count = 2 * max(1, len(gpus.split(",")))
    for rank, node in enumerate(cluster.nodes):
        said = (logs_of(job, checkout) / f"{node}.log").read_text()
        called = (
            rf"launcher: launch --machine_rank {rank} .* --num_machines 2 --num_processes {count} .*, GPUs {gpus}\n"
        )
        assert re.match(called, said), said
