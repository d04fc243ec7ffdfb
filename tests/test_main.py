"""`distvae` runs its programs with their own arguments and exit codes."""

import sys

import pytest

from distvae import __version__, cli
from distvae.__main__ import main
from distvae.system.programs import PROGRAMS


@pytest.fixture
def said(capsys, monkeypatch):
    """Runs the command; returns its exit code and what it printed."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["distvae", *words])
        try:
            code = main()
        except SystemExit as ended:  # by the parser
            code = ended.code
        return code, capsys.readouterr()

    return run


def test_the_version(said):
    assert said("--version") == (0, (f"distvae {__version__}\n", ""))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_has_its_own_help(said, name):
    code, printed = said(name, "--help")
    assert code == 0
    assert printed.out.startswith(f"usage: distvae {name} [-h] ")


def test_help_lists_programs_and_commands(said):
    code, printed = said("--help")
    assert code == 0
    for name in (*PROGRAMS, "evaluate", "sample"):
        assert f"\n    {name} " in printed.out


def test_a_program_refuses_what_it_refuses_elsewhere(said):
    code, printed = said("train", "configs/own.yaml", "--run", "x")
    assert (code, printed.err) == (2, "distvae: --run is not an option; write run=x\n")
    code, printed = said("sweep")
    assert (code, printed.err) == (2, "distvae: no sweep: name a file SWEEP.yaml, or --resume FOLDER\n")
    code, printed = said("table", "--rows", "nowhere", "--plan")
    assert (code, printed.err) == (2, "distvae: --rows nowhere: holds no config (*.yaml)\n")
    assert cli.main(["table", "--rows", "nowhere", "--plan"]) == 2


def test_the_program_trains(said, tiny, tmp_path):
    run = tmp_path / "run"
    given = [f"run={run}", "pretrain.max_epochs=0", "train.max_epochs=1", "evaluation.importance_samples=1"]
    code, printed = said("train", str(tiny), *given)
    assert code == 0, printed.err
    assert (run / "results.json").is_file()
