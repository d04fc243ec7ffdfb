"""slurm/table.sh, without a cluster."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.scripts import CONFIG, bash, stand_ins


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seeds"], "--seeds needs a value: slurm/table.sh [sbatch option …]"),
        (["--label"], "--label needs a value: slurm/table.sh [sbatch option …]"),
        (["--nodes", "2"], "'2': write an sbatch option as one word (--nodes=2)"),
        (["data.path"], "'data.path': write an sbatch option as one word (--nodes=2), and an override as key=value: "),
        (["--dependency=afterok:3"], "--dependency=afterok:3: cannot be given here"),
        (["--gpus-per-node=1", "-Jname"], "-Jname: cannot be given here"),
        (["--rows=nowhere"], "--rows nowhere: holds no config (*.yaml)"),
    ],
)
def test_tables_bad_arguments_get_one_line_and_submit_nothing(checkout, arguments, says):
    programs = stand_ins(checkout, {"squeue": "", "sbatch": "touch submitted\n"})
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = bash("slurm/table.sh", *arguments, cwd=checkout, PATH=path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"distvae: {says}")
    assert done.stderr.count("\n") == 1
    assert not (checkout / "runs").exists()
    assert not (checkout / "submitted").exists()


# The output of launch/table.py --plan.
PLAN = """\
seed-0/ae - {config} 'data.path=a b.txt' 'run=runs/ta ble/seed-0/ae'
seed-0/kla finished {config} 'run=runs/ta ble/seed-0/kla'
seed-0/fb seed-0/ae {config} 'run=runs/ta ble/seed-0/fb'
seed-0/sfb seed-0/ae {config} 'run=runs/ta ble/seed-0/sfb'
seed-1/ae - {config} 'run=runs/ta ble/seed-1/ae'
seed-1/fb seed-1/ae {config} 'run=runs/ta ble/seed-1/fb'
"""

# Stand-ins for Slurm's queue, a file, and for its sbatch, which refuses the job that $REFUSED names.
SBATCH = """\
[[ -z $REFUSED || $* != *"$REFUSED"* ]] || { echo "sbatch: error: refused" >&2; exit 1; }
printf '%s\n' "$*" >>submitted
echo "$((40 + $(wc -l <submitted)))"
"""

# Slurm's reason for a job to wait.
DOWN = "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions"


@pytest.fixture
def table(checkout):
    """Runs slurm/table.sh with a given plan and queue. ``submitted`` in the checkout has the arguments of sbatch."""
    (checkout / "plan").write_text(PLAN.format(config=CONFIG))
    programs = stand_ins(
        checkout,
        {
            "python3": '[[ $1 != launch/table.py ]] || { echo "$@" >asked; cat plan; }\n',
            "squeue": "cat queue\n",
            "sbatch": SBATCH,
        },
    )

    def run(*arguments: str, queue: dict[str, str], refused: str = "") -> subprocess.CompletedProcess:
        jobs = [f"{job}|{checkout}/runs/ta ble/{name}\n" for name, job in queue.items()]
        (checkout / "queue").write_text("".join(["4|RUNNING|None|other\n", *jobs]))
        path = f"{programs}:{os.environ['PATH']}"
        return bash("slurm/table.sh", *arguments, cwd=checkout, PATH=path, REFUSED=refused)

    return run


def submitted(checkout: Path) -> dict[str, str]:
    """The arguments of sbatch, by job name."""
    calls = (checkout / "submitted").read_text().splitlines()
    return {re.search(rf"--comment={checkout}/runs/ta ble/(\S+) ", call)[1]: call for call in calls}


def test_a_table_submits_what_neither_has_finished_nor_is_in_the_queue(table, checkout):
    queue = {
        "seed-0/ae": "7|RUNNING|None", "seed-0/fb": f"8|PENDING|{DOWN}",
        "seed-1/fb": "9|PENDING|DependencyNeverSatisfied", "report": "10|PENDING|Dependency",
    }  # fmt: skip
    words = ["--gpus-per-node=1", "--rows", "my rows", "data.path=a b.txt", "--seeds=0,1", "--time=9"]
    done = table(*words, queue=queue)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "seed-0/ae: job 7, in the queue",
        "seed-0/kla: finished",
        "seed-0/fb: job 8, in the queue",
        "seed-0/sfb: job 41, afterok:7",
        "seed-1/ae: job 42",
        "seed-1/fb: job 43, afterok:42",
        "report: job 44, afterany:7:8:41:42:43:10",
    ]
    asked = "launch/table.py --plan --rows=my rows data.path=a b.txt --seeds=0,1\n"
    assert (checkout / "asked").read_text() == asked
    calls = submitted(checkout)
    assert list(calls) == ["seed-0/sfb", "seed-1/ae", "seed-1/fb", "report"]
    assert all(" --gpus-per-node=1 --time=9 " in call for call in calls.values())
    names = {name: re.findall(r"--job-name=(\S+)", call)[-1] for name, call in calls.items()}
    assert names == {
        "seed-0/sfb": "table:sfb:seed-0", "seed-1/ae": "table:ae:seed-1", "seed-1/fb": "table:fb:seed-1",
        "report": "report:ta_ble",
    }  # fmt: skip
    assert " --dependency=afterok:7 --kill-on-invalid-dep=yes " in calls["seed-0/sfb"]
    assert "--dependency" not in calls["seed-1/ae"]
    assert calls["seed-1/fb"].endswith(f" {CONFIG} run=runs/ta ble/seed-1/fb")
    runs = [f"runs/ta ble/{line.split()[0]}" for line in PLAN.splitlines()]
    assert " --nodes=1 runs/slurm/report-" in calls["report"]
    assert calls["report"].endswith(" ".join(["--out", "runs/ta ble", *runs]))


def test_probes_are_for_the_report_and_checked_with_the_plan(table, checkout):
    done = table("--probe", "--label", "intent,domain", "--seeds=0", queue={})
    assert (done.returncode, done.stderr) == (0, "")
    assert (checkout / "asked").read_text() == "launch/table.py --plan --seeds=0 --probe --label=intent,domain\n"
    calls = submitted(checkout)
    runs = [f"runs/ta ble/{line.split()[0]}" for line in PLAN.splitlines()]
    assert calls["report"].endswith(" ".join(["--out", "runs/ta ble", "--probe", "--label=intent,domain", *runs]))
    assert not any("--probe" in call for name, call in calls.items() if name != "report")


def test_a_table_whose_jobs_are_all_in_the_queue_submits_none(table, checkout):
    names = [line.split()[0] for line in PLAN.splitlines()]
    done = table(queue={name: f"{i}|PENDING|None" for i, name in enumerate([*names, "report"], 10)})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(", in the queue\n") == 6
    assert not (checkout / "submitted").exists()


def test_a_table_that_has_finished_has_only_its_report(table, checkout):
    plan = "".join(f"{name} finished {CONFIG} run=runs/table/{name}\n" for name in ("seed-0/ae", "seed-0/kla"))
    (checkout / "plan").write_text(plan)
    done = table(queue={})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "seed-0/ae: finished\nseed-0/kla: finished\nreport: job 41\n"


def test_a_table_checks_its_data_once(checkout, tiny):
    (checkout / "rows").mkdir()
    for name, stages in (("ae", "train: {max_epochs: 0}"), ("pt", "")):
        text = re.sub(r"(?m)^(pretrain|train):.*\n( .*\n)*", "", tiny.read_text())
        (checkout / "rows" / f"{name}.yaml").write_text(f"{text}\n{stages}\n")
    programs = stand_ins(checkout, {"squeue": "", "sbatch": SBATCH})
    path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    words = ["slurm/table.sh", "--rows=rows", "--seeds=0", "data.train_size=null", "data.path={}/where"]
    done = bash(*(word.format("no") for word in words), cwd=checkout, PATH=path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("distvae: data.path=no/where: no such file or folder; if it is a dataset")
    assert not (checkout / "submitted").exists()
    done = bash(*(word.format("/no") for word in words), cwd=checkout, PATH=path, REFUSED="")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("distvae: WARNING data.path=/no/where: not found here; ")
    assert done.stderr.count("\n") == 1
    assert len((checkout / "submitted").read_text().splitlines()) == 3


def test_a_report_comes_after_all_earlier_ones(table, checkout):
    (checkout / "plan").write_text(f"seed-0/ae - {CONFIG} 'run=runs/ta ble/seed-0/ae'\n")
    (checkout / "queue.more").write_text(
        "".join(f"{job}|PENDING|None|{checkout}/runs/ta ble/report\n" for job in (8, 9))
    )
    stand_ins(checkout, {"squeue": "cat queue queue.more\n"})
    done = table(queue={})
    assert done.stdout == "seed-0/ae: job 41\nreport: job 42, afterany:41:8:9\n"


def test_a_table_says_what_could_not_be_submitted(table, checkout):
    done = table(queue={"seed-1/ae": "7|COMPLETING|None"}, refused="seed-0/sfb")
    assert done.returncode == 1
    assert done.stdout == "seed-0/ae: job 41\nseed-0/kla: finished\nseed-0/fb: job 42, afterok:41\n"
    assert done.stderr == (
        "sbatch: error: refused\ndistvae: seed-0/sfb: could not be submitted; submitted before it, and left to run:"
        " 41 42; rerun the same command to resume\n"
    )
    done = table(queue={"seed-0/ae": "7|COMPLETING|None"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "distvae: seed-0/ae: its job 7 is ending; wait until it has left the queue; no job was submitted; rerun"
        " the same command to resume\n"
    )
