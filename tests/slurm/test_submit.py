"""slurm/submit.sh."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.scripts import CONFIG, SPACE, SWEEP, bash, stand_ins


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


@pytest.fixture
def submit(checkout):
    """Runs slurm/submit.sh with a stand-in for sbatch. ``words`` in the checkout has the arguments of sbatch."""
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
        (["report", "--out", "runs/table/snli", "runs/a"], "report:snli"),
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
    # Input that can be checked without Python is still refused.
    done = submit("train", CONFIG, "--nodes=2")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("distvae: '--nodes=2' is not an override; ")


def test_data_that_only_the_nodes_may_have_is_a_warning(submit):
    done = submit("train", CONFIG, "data.path=/no/where")
    assert done.returncode == 0
    assert done.stderr.startswith("distvae: WARNING data.path=/no/where: not found here; ")


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
