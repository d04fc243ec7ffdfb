"""The sweep program."""

import runpy
import sys

import pytest

from distvae.sweeps.__main__ import main
from tests.conftest import ROOT
from tests.sweep_folders import sweep_of


def asked(folder, **content) -> str:
    """The path of a sweep file."""
    sweep_of(folder / "sweep", **content)
    return str(folder / "file.yaml")


def test_a_dry_run_lists_the_trials_and_their_resources_and_writes_nothing(tmp_path, capsys):
    space = {"kl.policy": {"grid": ["soft_free_bits", "linear"]},
             "kl.target_rate": {"grid": [2, 4], "when": {"kl.policy": "soft_free_bits"}}}  # fmt: skip
    file = asked(tmp_path, space=space, num_samples=1, trial={"workers": 2, "cpus": 0.5, "gpus": 0})
    assert main([file, "--dry-run"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["trial", "kl.policy", "kl.target_rate"]
    assert rows[1:4] == [["0", "soft_free_bits", "2"], ["1", "soft_free_bits", "4"], ["2", "linear", "–"]]
    assert " ".join(rows[4]) == "3 trials, each with 0.5 CPUs and 0 GPUs for each of 2 processes"
    assert " ".join(rows[5]).startswith("1 pretraining, shared by all: ")
    assert list((tmp_path / "sweep").iterdir()) == []


def test_a_dry_run_with_optuna_lists_no_trials(tmp_path, capsys):
    file = asked(tmp_path, space={"kl.target_rate": {"uniform": [2, 4]}}, search="optuna", num_samples=5)
    assert main([file, "--dry-run", "trial.cpus=2"]) == 0
    assert "Optuna draws each trial from the results so far\n5 trials, each with 2 CPUs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no sweep: name a file SWEEP.yaml, or --resume FOLDER"),
        (["file.yaml", "--resume", "sweep"], "--resume FOLDER reads the sweep from its folder: leave out SWEEP"),
        (["file.yaml", "--max-concurrent", "0"], "--max-concurrent 0: should be at least 1"),
        (["none.yaml"], "none.yaml: cannot be read"),
        (["--resume", "none"], "none: is not a sweep folder"),
    ],
)
def test_bad_arguments_are_refused_in_a_line(tmp_path, monkeypatch, capsys, arguments, said):
    asked(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"distvae: {said}")
    assert error.count("\n") == 1


def test_without_ray_a_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    file = asked(tmp_path)
    monkeypatch.setitem(sys.modules, "distvae.sweeps.ray.driver", None)
    assert main([file]) == 2
    error = capsys.readouterr().err
    assert error.startswith("distvae: a sweep needs distvae.sweeps.ray.driver: install distvae with its extra")
    assert error.count("\n") == 1


def test_launch_sweep_is_the_same_program():
    assert runpy.run_path(str(ROOT / "launch" / "sweep.py"))["main"] is main
