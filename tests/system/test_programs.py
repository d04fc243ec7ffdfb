"""The entry point of the programs: every way to end has its exit code and at most one line."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from distvae.system.errors import UserError
from distvae.system.programs import out_of_memory, run_program
from distvae.system.signals import InterruptedRun, Signals
from tests.conftest import ROOT


def raising(error: BaseException):
    def body() -> int:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a.yaml: no such file"), 2, "distvae: a.yaml: no such file\n"),
        (InterruptedRun("runs/a: interrupted"), 75, "runs/a: interrupted; rerun the same command to resume\n"),
        (torch.OutOfMemoryError("CUDA"), 2, "distvae: out of memory: CUDA; use less\n"),
        (RuntimeError("can't allocate memory: 8"), 2, "distvae: out of memory: can't allocate memory: 8; use less\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)  # fmt: skip
def test_an_end_has_its_code_and_line(capsys, error, code, line):
    assert run_program(raising(error), hint="use less") == code
    assert capsys.readouterr() == ("", line)


def test_a_signal_that_c_code_has_swallowed_still_interrupts(capsys):
    """pydantic's Rust, for one, raises a SchemaError in place of the KeyboardInterrupt."""
    signals = Signals()

    def body() -> int:
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
            signal.sigtimedwait([], 5)
        except KeyboardInterrupt:
            raise ValueError("a schema cannot be built: SIGUSR1") from None
        return 0

    assert run_program(body, signals=signals) == 75
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ValueError, match="of its own"):
        run_program(raising(ValueError("of its own")), signals=Signals())


@pytest.mark.parametrize("code", [0, 1])
def test_a_program_that_returns_has_its_own_code(capsys, code):
    assert run_program(lambda: code) == code
    assert capsys.readouterr() == ("", "")


def test_a_fault_of_the_program_is_raised():
    for error in (RuntimeError("shapes differ"), KeyError("x"), SystemExit(2)):
        with pytest.raises(type(error)):
            run_program(raising(error))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_a_signal_before_there_is_anything_to_save_ends_the_program(number, code):
    former = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    assert run_program(lambda: os.kill(os.getpid(), number) or signal.pause() or 0, signals=Signals()) == code
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == former


def test_the_main_rank_leaves_its_code_for_the_launcher(monkeypatch, tmp_path):
    monkeypatch.setenv("DISTVAE_EXIT_FILE", str(tmp_path / "code"))
    monkeypatch.setenv("RANK", "1")
    assert run_program(raising(InterruptedRun("x"))) == 75
    assert not (tmp_path / "code").exists()
    monkeypatch.setenv("RANK", "0")
    assert run_program(raising(InterruptedRun("x"))) == 75
    assert (tmp_path / "code").read_text() == "75\n"


def test_a_rank_out_of_memory_names_itself(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert run_program(raising(torch.OutOfMemoryError("CUDA"))) == 2
    assert capsys.readouterr().err == "distvae: rank 3 is out of memory: CUDA\n"


def test_output_that_nobody_reads_ends_the_program(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys; from distvae.system.programs import run_program\n"
        "def body():\n    print('x' * 1_000_000)\n    return 0\n"
        "sys.exit(run_program(body, strict=True))\n"
    )
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} {program} | true; exit ${{PIPESTATUS[0]}}"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (141, "")


def test_memory_errors_of_torch_are_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert out_of_memory(caught.value)
    assert not out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
