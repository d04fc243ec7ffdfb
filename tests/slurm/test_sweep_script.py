"""slurm/sweep.sh, without a cluster."""

import os
import shutil
import socket

import pytest

from tests.slurm.scripts import CONFIG, SPACE, SWEEP, bash, stand_ins


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
