"""`distvae` runs its programs with their own arguments and exit codes."""

import importlib.util
import subprocess
import sys

import pytest

from distvae import __version__, cli
from distvae.__main__ import main
from distvae.system.programs import PROGRAMS
from tests.conftest import needs


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


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("sam", ["sample"]),
        ("t", ["train", "table"]),
        ("sample --met", ["--method"]),
        ("sample run --method b", ["beam"]),
        ("sample mi", ["mine"]),
        ("train ow", ["own.yaml"]),
        ("train own.yaml mi", ["mine"]),
    ],
)
def test_bash_completes(said, tmp_path, words, offered):
    needs(importlib.util.find_spec("shtab"), "no shtab")
    code, printed = said("--print-completion", "bash")
    assert code == 0
    (tmp_path / "completion").write_text(printed.out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "own.yaml").touch()
    words = ["distvae", *words.split()]
    script = f". ./completion; COMP_WORDS=({' '.join(words)}) COMP_CWORD={len(words) - 1}; _shtab_distvae"
    done = subprocess.run(
        ["bash", "-c", f'{script} distvae {words[-1]} {words[-2]}; printf "%s\\n" "${{COMPREPLY[@]}}"'],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert sorted(done.stdout.split()) == sorted(offered)


def test_zsh_gets_a_script(said):
    needs(importlib.util.find_spec("shtab"), "no shtab")
    code, printed = said("--print-completion", "zsh")
    assert (code, printed.out.splitlines()[0]) == (0, "#compdef distvae")
