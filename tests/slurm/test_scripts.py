"""What the scripts have in common, without a cluster."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, needs
from tests.slurm.scripts import CONFIG, bash


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
        ([CONFIG, "data.path=no/where"], "data.path=no/where: no such file or folder"),
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
    ("script", "words"),
    [("submit.sh", ["--help"]), ("submit.sh", ["--nodes=2", "train", "-h"]), ("table.sh", ["--seeds", "0", "--help"])],
)
def test_help_comes_before_all_else(tmp_path, script, words):
    done = bash(str(ROOT / "slurm" / script), *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"  bash slurm/{script} [sbatch option …] " in done.stdout
    assert "set -" not in done.stdout
    assert not list(tmp_path.iterdir())


def test_scripts_want_the_checkouts_folder_and_a_job(checkout, tmp_path):
    for script in ("train.sh", "sweep.sh", "report.sh", "submit.sh", "table.sh"):
        done = bash(str(checkout / "slurm" / script), CONFIG, cwd=tmp_path)
        assert done.returncode == 2
        assert (
            done.stderr
            == f"distvae: {tmp_path} has no slurm/job.sh; submit from a checkout or a folder of `distvae init`\n"
        )
    done = bash("slurm/train.sh", CONFIG, cwd=checkout)
    assert done.returncode == 2
    assert "submit it by sbatch or slurm/submit.sh" in done.stderr


def test_an_earlier_jobs_folder_is_not_taken_over(checkout):
    (checkout / "runs" / "slurm" / "7").mkdir(parents=True)
    done = bash("slurm/train.sh", CONFIG, cwd=checkout, SLURM_JOB_ID="7")
    assert done.returncode == 2
    assert "runs/slurm/7 is there already" in done.stderr
