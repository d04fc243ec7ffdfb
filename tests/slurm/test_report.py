"""slurm/report.sh."""

import os

import pytest

from tests.slurm.scripts import bash, stand_ins


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no folder to write to: slurm/report.sh --out FOLDER [--probe] [--label=COLUMN,COLUMN] RUN…"),
        (["runs/one"], "no folder to write to: "),
        (["--out", "runs/report"], "no run: "),
        (["--out", "runs/report", "--probe", "--label=intent"], "no run: "),
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
    # A run that has not begun is left out, for example because its pretraining failed.
    done = bash(*start, cwd=checkout, **environment)
    assert (done.returncode, done.stderr) == (2, "distvae: none of these runs has begun: runs/ta ble/seed-0/ae\n")
    run = checkout / words[-1]
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    done = bash(*start, "runs/ta ble/seed-0/kla", cwd=checkout, **environment)
    assert done.returncode == 3, done.stderr
    said = (checkout / "words").read_text().splitlines()
    assert said == [f"{checkout / code}:there", f"{code}/distvae/cli.py", "report", *words]
