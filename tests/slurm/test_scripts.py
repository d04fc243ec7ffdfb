"""The shell scripts by themselves, without a cluster."""

import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distvae.config.load import load_config
from tests.conftest import ROOT, needs

CONFIG = "configs/tests/tiny.yaml"


def bash(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    inherited["PATH"] = f"{Path(sys.executable).parent}:{inherited['PATH']}"
    return subprocess.run(
        ["bash", *arguments], cwd=cwd, env=inherited | environment, capture_output=True, text=True, timeout=60
    )


def is_shell(path: Path) -> bool:
    return path.is_file() and (
        path.suffix == ".sh" or path.read_bytes()[:32].startswith((b"#!/usr/bin/env bash", b"#!/bin/bash"))
    )


def test_shellcheck_has_nothing_to_say():
    needs(shutil.which("shellcheck"), "shellcheck is not installed")
    files = [
        path for name in (".ci", "launch", "slurm", "tests") for path in (ROOT / name).rglob("*") if is_shell(path)
    ]
    assert {"run", "demo.sh", "train.sh", "sweep.sh", "cluster"} <= {path.name for path in files}
    done = subprocess.run(["shellcheck", *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no config: "),
        (["--engine"], "--engine needs a value"),
        (["--engine", "warp", CONFIG], "--engine warp: no such file in launch/accelerate/, which holds "),
        (["--processes-per-node", "0", CONFIG], "--processes-per-node 0: should be a number from 1"),
        (["--nodes=2", CONFIG], "--nodes=2: no option of slurm/train.sh"),
        (["nowhere.yaml"], "nowhere.yaml: "),
        (
            [CONFIG, "kl.target_rate", "6"],
            "'kl.target_rate' is not key=value; write kl.target_rate=6",
        ),
        ([CONFIG, "=6"], "'=6' is not an override"),
        ([CONFIG, "seed=3", "kl.target_rat=6"], f"{CONFIG}: unknown key kl.target_rat; did you mean kl.target_rate?"),
        ([CONFIG, "kl.target_rate=-6"], f"{CONFIG}: kl.target_rate = -6"),
        ([CONFIG, "--nodes=2"], "--nodes=2 comes after CONFIG; options of sbatch come before the job"),
        ([CONFIG, "--engine", "zero2"], "--engine comes after CONFIG; "),
        ([CONFIG, "--run", "x"], "--run is not an option; write run=x"),
        (["run=x", CONFIG], "'run=x' is not a config; the config comes before the settings"),
        (["tiny"], f"tiny: cannot be read as a config: No such file or directory; did you mean {CONFIG}?"),
        ([CONFIG, "data.path=no/where"], "data.path=no/where: there is no such file or folder"),
    ],
)
@pytest.mark.parametrize("script", ["train.sh", "submit.sh"])
def test_bad_arguments_get_one_line_at_once(checkout, script, arguments, says):
    start = {"train.sh": ["slurm/train.sh"], "submit.sh": ["slurm/submit.sh", "--nodes=2", "train"]}[script]
    done = bash(*start, *arguments, cwd=checkout, SLURM_JOB_ID="7")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"distvae: {says}")
    assert done.stderr.count("\n") == 1
    assert not (checkout / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no job: slurm/submit.sh"),
        (["--nodes", "2", "train", CONFIG], "2 is not a job; write an sbatch option as one word (--nodes=2)"),
        (["node", CONFIG], "node is not a job; "),
        (["trian", CONFIG], "trian is not a job; "),
    ],
)
def test_submit_says_what_is_no_job(checkout, arguments, says):
    done = bash("slurm/submit.sh", *arguments, cwd=checkout)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"distvae: {says}")
    assert done.stderr.rstrip().endswith("one of: report sweep train")


def test_submit_says_that_the_job_is_missing(checkout):
    done = bash("slurm/submit.sh", "--nodes=2", CONFIG, "seed=3", cwd=checkout)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"distvae: no job before {CONFIG}: ")


@pytest.mark.parametrize(
    ("script", "words"),
    [("submit.sh", ["--help"]), ("submit.sh", ["--nodes=2", "train", "-h"]), ("table1.sh", ["--seeds", "0", "--help"])],
)
def test_help_comes_before_all_else(tmp_path, script, words):
    done = bash(str(ROOT / "slurm" / script), *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"  bash slurm/{script} [sbatch option …] " in done.stdout
    assert "set -" not in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.fixture
def submit(checkout):
    """Runs slurm/submit.sh with a stand-in for sbatch; ``words`` in the checkout has what that was called with."""
    programs = stand_ins(checkout, {"sbatch": 'printf "%s\\n" "$@" >words\necho 41\n'})

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return bash("slurm/submit.sh", *arguments, cwd=checkout, **{"PATH": path} | environment)

    return run


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["train", CONFIG], "train:tiny"),
        (["train", "--engine", "zero2", CONFIG, "seed=3"], "train:tiny"),
        (["train", CONFIG, "run=runs/one", "run=runs/six λ, 2/"], "train:six_λ__2"),
        (["train", "mine/tiny.v2.yaml"], "train:tiny.v2"),
        (["report", "--out", "runs/table1/snli", "runs/a"], "report:snli"),
        (["--job-name=own", "train", CONFIG], "own"),
        (["-Jown", "train", CONFIG], "own"),
    ],
)
def test_a_jobs_name_tells_what_runs(submit, checkout, arguments, name):
    (checkout / "mine").mkdir()
    shutil.copy(checkout / CONFIG, checkout / "mine" / "tiny.v2.yaml")
    done = submit(*arguments, LC_ALL="C.UTF-8")
    assert (done.returncode, done.stderr) == (0, "")
    words = (checkout / "words").read_text().splitlines()
    names = [word.partition("=")[2] or word[2:] for word in words if word.startswith(("--job-name=", "-J"))]
    assert names[-1] == name  # the last one counts


def test_a_name_in_the_environment_is_left_alone(submit, checkout):
    assert submit("train", CONFIG, SBATCH_JOB_NAME="own").returncode == 0
    assert "--job-name" not in (checkout / "words").read_text()


@pytest.mark.parametrize(
    ("site", "reason"),
    [
        ("python3() { return 127; }\ncontainer=(no-such-container exec)\n", "no-such-container"),
        ("container=(bash -c 'echo no module named pydantic >&2; exit 1')\n", "no module named pydantic"),
        ("container=(bash -c 'echo no such file >&2; exit 2')\n", "no such file"),
    ],
)
def test_what_cannot_be_checked_here_is_submitted_with_a_warning(submit, checkout, site, reason):
    with (checkout / "slurm" / "env.sh").open("a") as env:
        env.write(site)
    done = submit("train", CONFIG, "kl.rate=6")
    assert done.returncode == 0
    assert done.stdout.startswith("job 41\n")
    assert done.stderr.startswith("distvae: WARNING the config was not checked, because distvae does not run here (")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
    # What needs no Python is refused all the same.
    done = submit("train", CONFIG, "--nodes=2")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("distvae: '--nodes=2' is not an override; ")


def test_data_that_only_the_nodes_may_have_is_a_warning(submit):
    done = submit("train", CONFIG, "data.path=/no/where")
    assert done.returncode == 0
    assert done.stderr.startswith("distvae: WARNING data.path=/no/where: not found here; ")


SPACE = "space: {kl.target_rate: {grid: [2, 4]}}"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], None),
        (["num_sample=3"], "{sweep}: unknown key num_sample; did you mean num_samples?"),
        (["--kl.target_rate=3"], "--kl.target_rate is not an option; write set.kl.target_rate=3"),
    ],
)
def test_a_sweep_is_checked_before_it_is_submitted(submit, checkout, words, says):
    (checkout / SWEEP).write_text(f"base: {CONFIG}\n{SPACE}\n")
    done = submit("--nodes=2", "sweep", SWEEP, *words)
    if says is None:
        assert (done.returncode, done.stderr) == (0, "")
        assert "--job-name=sweep:sweep" in (checkout / "words").read_text().splitlines()
    else:
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("distvae: ")
        assert says.format(sweep=SWEEP) in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (checkout / "words").exists()
        assert not (checkout / "runs").exists()


SWEEP = "configs/tests/sweep.yaml"


@pytest.mark.parametrize(
    ("text", "arguments", "says"),
    [
        ("", [], "no sweep: slurm/sweep.sh SWEEP [key=value …]"),
        ("", ["--resume", "runs/sweep"], "--resume: no option of slurm/sweep.sh"),
        ("", ["nowhere.yaml"], "nowhere.yaml: cannot be read as a config: no such file"),
        ("space: {}\n", [SWEEP], f"{SWEEP}: names no training config by a line such as base: "),
        (
            f"base: {CONFIG}\n{SPACE}",
            [SWEEP, "base=there.yaml"],
            "there.yaml: cannot be read as a config: No such file",
        ),
    ],
)
@pytest.mark.parametrize("script", ["sweep.sh", "submit.sh"])
def test_a_sweeps_bad_arguments_get_one_line_at_once(checkout, script, text, arguments, says):
    (checkout / SWEEP).write_text(text)
    start = {"sweep.sh": ["slurm/sweep.sh"], "submit.sh": ["slurm/submit.sh", "--nodes=2", "sweep"]}[script]
    done = bash(*start, *arguments, cwd=checkout, SLURM_JOB_ID="7")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"distvae: {says}")
    assert done.stderr.count("\n") == 1
    assert not list(checkout.glob("runs/slurm/*/*"))


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


def test_configs_of_one_name_are_refused(checkout):
    (checkout / "mine").mkdir()
    shutil.copy(checkout / CONFIG, checkout / "mine" / "sweep.yaml")
    (checkout / "sweep.yaml").write_text(f"base: mine/sweep.yaml\n{SPACE}\n")
    done = bash("slurm/submit.sh", "sweep", "sweep.yaml", cwd=checkout)
    assert (done.returncode, done.stderr) == (2, "distvae: mine/sweep.yaml: another config of the job has this name\n")
    assert not list(checkout.glob("runs/slurm/*/*"))


@pytest.mark.parametrize("line", ["base: {}", "base:   '{}'  # a tiny one", 'base: "{}"', "base: {} # a tiny one"])
def test_a_sweep_runs_from_its_copy(checkout, line):
    texts = {"srun": 'printf "%s\\n" "$@" >words\n', "scontrol": "echo n1\n", "python3": ""}
    programs = stand_ins(checkout, texts)
    sweep = "mine/sweep.yaml"
    (checkout / "mine").mkdir()
    (checkout / sweep).write_text(f"seed: 3\n{line.format(CONFIG)}\n")
    path = f"{programs}:{os.environ['PATH']}"
    done = bash("slurm/sweep.sh", "--copy", "runs/slurm/one", sweep, "seed=4", cwd=checkout, PATH=path)
    assert done.returncode == 0, done.stderr
    for path in (sweep, CONFIG, "slurm/job.sh", "launch/sweep.py"):
        (checkout / path).write_text("exit 9 [\n")
    slurm = {
        "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1",
        "SLURM_JOB_NUM_NODES": "1", "SLURMD_NODENAME": socket.gethostname(), "TMPDIR": str(checkout),
    }  # fmt: skip
    done = bash(
        "runs/slurm/one/code/slurm/sweep.sh", "--from", "runs/slurm/one", sweep, "seed=4", cwd=checkout, **slurm
    )
    assert done.returncode == 0, done.stderr
    code = "runs/slurm/one/code"
    assert (checkout / code / CONFIG).read_text() != "exit 9 [\n"
    words = (checkout / "words").read_text().splitlines()
    command = ["python3", f"{code}/launch/sweep.py", f"{code}/configs/sweep.yaml", "seed=4", f"base={code}/{CONFIG}"]
    assert words[-5:] == command
    assert {"--no-kill", "--kill-on-bad-exit=0"} <= set(words)
    assert not (checkout / "runs/slurm/one/token").exists()


def stand_ins(checkout: Path, texts: dict[str, str]) -> Path:
    """A folder of programs that stand in for others."""
    programs = checkout / "programs"
    programs.mkdir(exist_ok=True)
    for name, text in texts.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}")
        (programs / name).chmod(0o755)
    return programs


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no folder to write to: slurm/report.sh --out FOLDER RUN…"),
        (["runs/one"], "no folder to write to: "),
        (["--out", "runs/report"], "no run: "),
    ],
)
@pytest.mark.parametrize("script", ["report.sh", "submit.sh"])
def test_a_reports_bad_arguments_get_one_line_at_once(checkout, script, arguments, says):
    start = {"report.sh": ["slurm/report.sh"], "submit.sh": ["slurm/submit.sh", "--nodes=1", "report"]}[script]
    done = bash(*start, *arguments, cwd=checkout, SLURM_JOB_ID="7")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"distvae: {says}")
    assert done.stderr.count("\n") == 1
    assert not (checkout / "runs").exists()


def test_a_report_runs_from_its_copy(checkout):
    programs = stand_ins(checkout, {"python3": 'printf "%s\\n" "$PYTHONPATH" "$@" >words\nexit 3\n'})
    words = ["--out", "runs/ta ble", "runs/ta ble/seed-0/ae"]
    done = bash("slurm/report.sh", "--copy", "runs/slurm/one", *words, cwd=checkout)
    assert done.returncode == 0, done.stderr
    for path in ("slurm/job.sh", "distvae/cli.py"):
        (checkout / path).write_text("exit 9 [\n")
    code = "runs/slurm/one/code"
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": "there"}
    start = [f"{code}/slurm/report.sh", "--from", "runs/slurm/one", *words]
    # A run that has not begun is left out, as one is whose pretraining failed.
    done = bash(*start, cwd=checkout, **environment)
    assert (done.returncode, done.stderr) == (2, "distvae: none of these runs has begun: runs/ta ble/seed-0/ae\n")
    run = checkout / words[-1]
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    done = bash(*start, "runs/ta ble/seed-0/kla", cwd=checkout, **environment)
    assert done.returncode == 3, done.stderr
    said = (checkout / "words").read_text().splitlines()
    assert said == [f"{checkout / code}:there", f"{code}/distvae/cli.py", "report", *words]


# -- Table 1 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seeds"], "--seeds needs a value: slurm/table1.sh [sbatch option …]"),
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
    done = bash("slurm/table1.sh", *arguments, cwd=checkout, PATH=path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"distvae: {says}")
    assert done.stderr.count("\n") == 1
    assert not (checkout / "runs").exists()
    assert not (checkout / "submitted").exists()


# What launch/table1.py would say.
PLAN = """\
seed-0/ae - {config} 'data.path=a b.txt' 'run=runs/ta ble/seed-0/ae'
seed-0/kla finished {config} 'run=runs/ta ble/seed-0/kla'
seed-0/fb seed-0/ae {config} 'run=runs/ta ble/seed-0/fb'
seed-0/sfb seed-0/ae {config} 'run=runs/ta ble/seed-0/sfb'
seed-1/ae - {config} 'run=runs/ta ble/seed-1/ae'
seed-1/fb seed-1/ae {config} 'run=runs/ta ble/seed-1/fb'
"""

# Slurm's queue, a file, and its sbatch, which refuses what $REFUSED says.
SBATCH = """\
[[ -z $REFUSED || $* != *"$REFUSED"* ]] || { echo "sbatch: error: refused" >&2; exit 1; }
printf '%s\n' "$*" >>submitted
echo "$((40 + $(wc -l <submitted)))"
"""


# As Slurm says why a job waits.
DOWN = "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions"


@pytest.fixture
def table(checkout):
    """Runs slurm/table1.sh with a plan of its own and a queue of the jobs given; ``submitted`` in the checkout has what
    sbatch was called with."""
    (checkout / "plan").write_text(PLAN.format(config=CONFIG))
    programs = stand_ins(
        checkout,
        {
            "python3": '[[ $1 != launch/table1.py ]] || { echo "$@" >asked; cat plan; }\n',
            "squeue": "cat queue\n",
            "sbatch": SBATCH,
        },
    )

    def run(*arguments: str, queue: dict[str, str], refused: str = "") -> subprocess.CompletedProcess:
        jobs = [f"{job}|{checkout}/runs/ta ble/{name}\n" for name, job in queue.items()]
        (checkout / "queue").write_text("".join(["4|RUNNING|None|other\n", *jobs]))
        path = f"{programs}:{os.environ['PATH']}"
        return bash("slurm/table1.sh", *arguments, cwd=checkout, PATH=path, REFUSED=refused)

    return run


def submitted(checkout: Path) -> dict[str, str]:
    """What sbatch was called with, by the names of the jobs."""
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
    asked = "launch/table1.py --plan --rows=my rows data.path=a b.txt --seeds=0,1\n"
    assert (checkout / "asked").read_text() == asked
    calls = submitted(checkout)
    assert list(calls) == ["seed-0/sfb", "seed-1/ae", "seed-1/fb", "report"]
    assert all(" --gpus-per-node=1 --time=9 " in call for call in calls.values())
    names = {name: re.findall(r"--job-name=(\S+)", call)[-1] for name, call in calls.items()}
    assert names == {
        "seed-0/sfb": "table1:sfb:seed-0", "seed-1/ae": "table1:ae:seed-1", "seed-1/fb": "table1:fb:seed-1",
        "report": "report:ta_ble",
    }  # fmt: skip
    assert " --dependency=afterok:7 --kill-on-invalid-dep=yes " in calls["seed-0/sfb"]
    assert "--dependency" not in calls["seed-1/ae"]
    assert calls["seed-1/fb"].endswith(f" {CONFIG} run=runs/ta ble/seed-1/fb")
    runs = [f"runs/ta ble/{line.split()[0]}" for line in PLAN.splitlines()]
    assert " --nodes=1 runs/slurm/report-" in calls["report"]
    assert calls["report"].endswith(" ".join(["--out", "runs/ta ble", *runs]))


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
    words = ["slurm/table1.sh", "--rows=rows", "--seeds=0", "data.train_size=null", "data.path={}/where"]
    done = bash(*(word.format("no") for word in words), cwd=checkout, PATH=path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "distvae: data.path=no/where: there is no such file or folder\n"
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


def test_scripts_want_the_checkouts_folder_and_a_job(checkout, tmp_path):
    for script in ("train.sh", "sweep.sh", "report.sh", "submit.sh", "table1.sh"):
        done = bash(str(checkout / "slurm" / script), CONFIG, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr == f"distvae: {tmp_path} is not a checkout of distvae; submit from its folder\n"
    done = bash("slurm/train.sh", CONFIG, cwd=checkout)
    assert done.returncode == 2
    assert "submit it by sbatch or slurm/submit.sh" in done.stderr


def test_an_earlier_jobs_folder_is_not_taken_over(checkout):
    (checkout / "runs" / "slurm" / "7").mkdir(parents=True)
    done = bash("slurm/train.sh", CONFIG, cwd=checkout, SLURM_JOB_ID="7")
    assert done.returncode == 2
    assert "runs/slurm/7 is there already" in done.stderr


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
    # An exception's traceback follows, but not what the launcher says after it.
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


# -- GPUs --------------------------------------------------------------------------------------------------------------

# What Slurm says about a job of two nodes.
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
    """What sbatch was asked for is not passed on: under --exclusive it is not what the job was given."""
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


# -- Ends, and going on ------------------------------------------------------------------------------------------------

# What a job calls, in place of Slurm. Asked to requeue, it ends the script that asks, as Slurm does.
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
    """Starts slurm/train.sh as Slurm would; ``calls`` in the checkout tells what it called."""
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
    said, _ = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM  # and no end of its own, which would count
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
    said, _ = process.communicate(timeout=30)
    assert process.returncode == code
    assert says in said
    assert len(calls(checkout)) == 1


def test_what_an_earlier_start_said_counts_no_more(job, checkout):
    job(SAID="2").communicate(timeout=30)
    (checkout / "runs" / "slurm" / "7" / "logs-1").mkdir()
    (checkout / "runs" / "slurm" / "7" / "logs-1" / "exit").write_text("75\n")
    process = job(SAID="", SLURM_RESTART_COUNT="1", JOB=RUNNING.replace("Restarts=0", "Restarts=1"))
    process.communicate(timeout=30)
    assert process.returncode == 1
    assert calls(checkout) == ["runs/slurm/7/logs/exit", "runs/slurm/7/logs-1/exit"]


def test_the_sites_cap_on_requeues_is_the_jobs(job, checkout):
    with (checkout / "slurm" / "env.sh").open("a") as env:
        env.write("echo loading modules\nmax_requeues=2\n")
    at = {"SLURM_RESTART_COUNT": "1", "JOB": RUNNING.replace("Restarts=0", "Restarts=1")}
    (checkout / "runs" / "slurm" / "7").mkdir(parents=True)
    said, _ = job(**at).communicate(timeout=30)
    assert "the job is requeued, time 2 of at most 2\n" in said
    at = {"SLURM_RESTART_COUNT": "2", "JOB": RUNNING.replace("Restarts=0", "Restarts=2")}
    said, _ = job(**at).communicate(timeout=30)
    assert "the job has been requeued 2 times, no more are allowed" in said


def test_a_job_outlives_its_warnings(job, checkout):
    process = job(STEPS="20")
    end = time.monotonic() + 20
    while not (checkout / "calls").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        time.sleep(0.3)
        process.send_signal(number)
    process.communicate(timeout=30)
    assert calls(checkout) == ["runs/slurm/7/logs/exit", "srun: USR1", "requeue 7"]


# A launcher that dies of signals, and the training that it starts: in a session of its own, slow to come, with a helper
# that would die too.
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
until = time.monotonic() + 20
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
    end = time.monotonic() + 20
    while not early and not (tmp_path / "trains").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 0, said
    assert said == f"SIGTERM: passed on to the training, to save and end\nhad {signal.SIGTERM:d} helper None\n"


BLOCKS = "import signal, time; signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIG{}}}); print(); time.sleep(60)"
CATCHES = "import signal, time; signal.signal(signal.SIGTERM, print); print(); time.sleep(60)"


@pytest.mark.parametrize(
    ("process", "takes"),
    [
        (f"exec {sys.executable} -uc 'print(); import time; time.sleep(60)'", False),
        (f"exec {sys.executable} -uc '{CATCHES}'", True),
        ("exec bash -c 'trap : TERM; sleep 60 & echo; wait'", True),
        (f"exec {sys.executable} -uc '{BLOCKS.format('TERM')}'", True),
        # What a shell blocks while it starts a program; its copy before it is that program, with its traps as yet.
        (f"exec {sys.executable} -uc '{BLOCKS.format('TERM, signal.SIGCHLD')}'", False),
        ("trap : TERM; sleep 60 & echo; wait", False),
    ],
)
def test_a_signal_is_for_what_handles_it(checkout, process, takes):
    script = f"""
        . slurm/signals.sh
        coproc {{ {process}; }}
        read -ru "${{COPROC[0]}}"
        if takes "$COPROC_PID" "$(kill -l TERM)"; then echo True; else echo False; fi
        kill -KILL $(below "$COPROC_PID")
    """
    assert bash("-c", script, cwd=checkout).stdout == f"{takes}\n"


# Ray, as far as its scripts know it: processes that hang, one of them in a process group of its own.
RAY = """\
echo "$*" >"$NOTES/ray"
echo >>"$NOTES/starts"
(($(wc -l <"$NOTES/starts") > ${FAIL:-0})) || { echo "no room"; exit 1; }
set -m
sleep "600.$SLURM_JOB_ID" &
set +m
trap '' TERM
while [[ ! -e $NOTES/end ]]; do sleep 0.1; done
"""

# Slurm, which takes a job's first node from it once the file `lost` is there.
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
    """Starts slurm/ray.sh as srun would, on a node of a job; ``notes`` tells what it called."""
    (tmp_path / "notes").mkdir()
    python = 'if [[ $1 == -c ]]; then sleep "${GATHER:-0.2}"; fi\n'  # until all nodes are there
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
    # What was killed may take a moment to go; other tests that run at the same time have processes of their own.
    pattern, end = rf"sleep 600\.{job}|ray start .*distvae-ray-{job}", time.monotonic() + 10
    while left := subprocess.run(["pgrep", "--full", "--list-full", pattern], capture_output=True, text=True).stdout:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def test_a_sweeps_first_node_ends_as_the_sweep_does(ray, tmp_path):
    said, _ = (process := ray(0, "10.0.0.1:20000", "exit 3", SLURM_GPUS_ON_NODE="2")).communicate(timeout=30)
    assert (process.returncode, said) == (3, "")
    assert (tmp_path / "exit").read_text() == "3\n"
    called = (tmp_path / "notes" / "ray").read_text()
    assert called.startswith("start --block ")
    for option in ("--head", "--num-cpus=3", "--num-gpus=2", "--port=20000", "--node-ip-address=10.0.0.1"):
        assert f" {option} " in called


NO_ROOM = "Ray did not start on n1 (start {} of 3):\n    no room\n"


def test_a_sweeps_first_node_starts_ray_again(ray, tmp_path):
    said, _ = (process := ray(0, "10.0.0.1:20000", 'echo "$RAY_ADDRESS"', FAIL="2", GATHER="1")).communicate(timeout=30)
    assert (process.returncode, said) == (
        0, "".join(NO_ROOM.format(i) for i in (1, 2)) + "10.0.0.1:20000\n",
    )  # fmt: skip


@pytest.mark.parametrize(("code", "ends"), [(1, 75), (2, 2), (0, 0)])
def test_a_sweep_whose_ray_has_ended_can_go_on(ray, tmp_path, code, ends):
    """But where it has failed by itself, or finished, that is how it ends."""
    command = f"touch notes/end; sleep 0.5; echo {code} >exit; exit {code}"
    said, _ = (process := ray(0, "10.0.0.1:20000", command)).communicate(timeout=30)
    assert process.returncode == ends
    assert (tmp_path / "exit").read_text() == f"{ends}\n"
    assert said == ("Ray has ended on n1, and the sweep with it:\n" if ends == 75 else "")


def test_a_sweep_fails_where_ray_does_not_start(ray, tmp_path):
    said, _ = (process := ray(0, "10.0.0.1:20000", "echo sweeps", FAIL="9", GATHER="9")).communicate(timeout=30)
    assert (process.returncode, said) == (
        1, "".join(NO_ROOM.format(i) for i in (1, 2, 3)) + "distvae: Ray does not start on n1\n",
    )  # fmt: skip
    assert (tmp_path / "exit").read_text() == "1\n"


def test_a_sweeps_other_nodes_start_ray_again(ray, tmp_path):
    """As often as it ends, each time after a longer pause, until the sweep does."""
    with socket.create_server(("127.0.0.1", 0)) as head:
        process = ray(1, f"127.0.0.1:{head.getsockname()[1]}", FAIL="2")
        wait_for_starts(tmp_path, 3)
        time.sleep(2.5)
        assert process.poll() is None
        (tmp_path / "exit").write_text("0\n")
    said, _ = process.communicate(timeout=30)
    ended = "Ray has ended on n2 (time {}; it is started again after {} s):\n    no room\n"
    assert (process.returncode, said) == (0, ended.format(1, 0) + ended.format(2, 10))


def test_a_node_without_ray_ends_when_told_to(ray, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as head:
        process = ray(1, f"127.0.0.1:{head.getsockname()[1]}", FAIL="9")
        wait_for_starts(tmp_path, 2)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=8)  # and not after its pause
    assert process.returncode == 1
    assert said.endswith("the sweep continues without n2\n")


@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_a_sweep_is_told_of_the_end_and_may_save(ray, tmp_path, name):
    saves = f"trap 'sleep 0.5; exit 75' {name}; touch notes/runs; while :; do sleep 0.1; done"
    process = ray(0, "10.0.0.1:20000", saves)
    wait_for_file(tmp_path / "notes" / "runs")
    process.send_signal(signal.Signals[f"SIG{name}"])
    said, _ = process.communicate(timeout=30)
    assert (process.returncode, said) == (75, f"SIG{name}: passed on to the training, to save and end\n")
    assert (tmp_path / "exit").read_text() == "75\n"


def test_a_sweep_that_has_not_begun_can_go_on(ray, tmp_path):
    process = ray(0, "10.0.0.1:20000", "touch notes/runs", GATHER="60")
    wait_for_file(tmp_path / "notes" / "ray")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert (tmp_path / "exit").read_text() == "75\n"
    assert not (tmp_path / "notes" / "runs").exists()


def test_a_sweeps_other_nodes_join_the_first_and_end_with_it(ray, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as head:
        process = ray(1, f"127.0.0.1:{head.getsockname()[1]}")
        wait_for_file(tmp_path / "notes" / "ray")
        assert " --address=127.0.0.1:" in (tmp_path / "notes" / "ray").read_text()
        process.send_signal(signal.SIGTERM)  # the first node's part
        time.sleep(1)
        assert process.poll() is None
        (tmp_path / "exit").write_text("0\n")
        time.sleep(2.5)
        assert process.poll() is None
    assert process.wait(timeout=30) == 0


def test_a_sweeps_other_nodes_have_it_start_again_when_the_first_is_lost(ray, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as head:
        process = ray(1, f"127.0.0.1:{head.getsockname()[1]}")
        wait_for_file(tmp_path / "notes" / "ray")
    # A node that goes down may refuse connections before it is gone, and Slurm has yet to notice.
    time.sleep(2.5)
    assert process.poll() is None
    (tmp_path / "notes" / "lost").touch()
    wait_for_file(tmp_path / "notes" / "requeue")
    process.send_signal(signal.SIGTERM)  # Slurm's
    said, _ = process.communicate(timeout=30)
    assert "the job's first node is lost\n" in said
    assert "the job is requeued, time 1 of at most 100\n" in said


def wait_for_starts(folder: Path, count: int) -> None:
    """Wait until the stand-in for Ray has been started so often."""
    end = time.monotonic() + 40
    while not (starts := folder / "notes" / "starts").exists() or len(starts.read_text()) < count:
        assert time.monotonic() < end, f"Ray is not started {count} times"
        time.sleep(0.1)


def wait_for_file(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, f"{path} is not there"
        time.sleep(0.05)
