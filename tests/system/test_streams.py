"""Output that cannot be written: a training finishes all the same, a command whose product it is says so."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from distvae.system.streams import secure
from tests.conftest import PATIENCE, ROOT

PRINTS = (
    "import sys; from distvae.system.streams import secure; secure(strict={strict})\n"
    "print('−ELBO \\udc80'); print('warning γ', file=sys.stderr); sys.stdout.flush()\n"
    "print('more ' * 100000); open({path!r}, 'w').write('done')"
)


def shell(command: str, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", command], env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, capture_output=True,
        timeout=PATIENCE,
    )  # fmt: skip


def prints(tmp_path, redirection: str, strict=False, **environment) -> subprocess.CompletedProcess:
    program = tmp_path / "program.py"
    program.write_text(PRINTS.format(strict=strict, path=str(tmp_path / "done")), encoding="utf-8")
    return shell(f"{sys.executable} {program} {redirection}; exit ${{PIPESTATUS[0]}}", **environment)


@pytest.mark.parametrize(
    "redirection",
    [">&-", "2>&-", "<&- >&- 2>&-", "> /dev/full", "2> /dev/full", "> /dev/full 2>&1", "| true", "2>&1 | head -c 1"],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_program_ends_well_whatever_becomes_of_its_output(tmp_path, redirection, unbuffered):
    done = prints(tmp_path, redirection, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done").read_text() == "done"
    assert done.stderr in (b"", "warning γ\n".encode())


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}],
)
def test_characters_that_the_output_has_not_are_escaped(tmp_path, environment):
    done = prints(tmp_path, "", PYTHONUTF8="0", **environment)
    assert done.returncode == 0
    assert done.stdout.startswith(b"\\u2212ELBO \\udc80\n")
    assert done.stderr == b"warning \\u03b3\n"


def test_a_file_of_the_program_never_gets_a_closed_streams_number(tmp_path):
    code = "import os, sys; from distvae.system.streams import secure; secure()\n"
    code += f"file = open({str(tmp_path / 'mine')!r}, 'w'); os.write(1, b'stray'); os.write(2, b'stray'); file.close()"
    done = shell(f'{sys.executable} -c "$CODE" <&- >&- 2>&-', CODE=code)
    assert done.returncode == 0
    assert (tmp_path / "mine").read_text() == ""


def test_a_line_is_lost_while_the_disk_is_full_and_no_longer(tmp_path):
    """The descriptor is what is full; later it is a file with room."""
    code = "import os, sys; from distvae.system.streams import secure; secure()\n"
    code += "print('lost', flush=True); os.dup2(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY), 1); print('kept')"
    done = shell(f'{sys.executable} -c "$CODE" {tmp_path / "log"} > /dev/full', CODE=code)
    assert done.returncode == 0
    assert (tmp_path / "log").read_text() == "kept\n"


@pytest.mark.parametrize(
    ("command", "redirection", "reason"),
    [
        ("sample {run}", "> /dev/full", "No space left on device"),
        ("compare {run}", ">&-", "Bad file descriptor"),
        ("--help", "> /dev/full", "No space left on device"),
    ],
)
def test_a_command_whose_product_is_lost_fails_with_a_line(finished, command, redirection, reason):
    done = shell(f"{sys.executable} -m distvae.cli {command.format(run=finished)} {redirection}")
    assert done.returncode == 2
    assert done.stderr.decode().startswith(f"distvae: standard output: cannot be written: {reason}")
    assert done.stderr.count(b"\n") == 1


def test_a_table_that_nobody_reads_ends_quietly(finished):
    """Four at once: a thread of a library that outlives the program shows where the cores are taken."""
    ends = "distvae.cli compare {run} | true; echo ${{PIPESTATUS[0]}}"
    done = shell(f"for i in 1 2 3 4; do ({sys.executable} -m {ends.format(run=finished)}) & done; wait")
    assert (done.stdout, done.stderr) == (b"141\n" * 4, b"")


def test_json_stays_json_where_the_output_is_ascii(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "café", symlinks=True)
    done = shell(f"{sys.executable} -m distvae.cli compare {tmp_path}/café --json", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert list(json.loads(done.stdout.decode("ascii"))) == ["café"]


def test_streams_that_another_program_has_put_there_stay(capsys):
    before = sys.stdout, sys.stderr
    secure()
    assert (sys.stdout, sys.stderr) == before
