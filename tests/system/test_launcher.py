"""What launchers set in the environment: whatever it is, one line or a run."""

import os
import subprocess
import sys

import pytest

from distvae.config.load import load_config
from distvae.distributed.runtime import Runtime
from distvae.runs.attempts import claim
from distvae.system import launcher
from distvae.system.errors import OwnError, PeerError, UserError, tell
from tests.conftest import ROOT

PLACE = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
PLACE |= {"MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in (*launcher.NUMBERS, "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)


def put(monkeypatch, **environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 in the environment needs RANK, MASTER_ADDR too"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2 in the environment needs RANK, MASTER_ADDR too"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0 in the environment needs RANK, MASTER_ADDR too"),
        ({"RANK": "1"}, "RANK is 1, and WORLD_SIZE is not set: a rank is below"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK is 1, and WORLD_SIZE is not set"),
        (PLACE | {"RANK": "2"}, "RANK is 2, and WORLD_SIZE is 2"),
        (PLACE | {"LOCAL_WORLD_SIZE": "1"}, "LOCAL_RANK is 1, and LOCAL_WORLD_SIZE is 1"),
        (PLACE | {"MASTER_PORT": "70000"}, "MASTER_PORT is 70000: should be below 65536"),
        (PLACE | {"MASTER_ADDR": "a..b"}, "MASTER_ADDR is 'a..b': "),
        (PLACE | {"MASTER_ADDR": ""}, "needs MASTER_ADDR too"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, "asks for torch.compile"),
    ]
    + [
        ({name: value}, f"the environment variable {name} is {value[:20]!r}: should be a whole number from")
        for name in launcher.NUMBERS
        for value in ("abc", "-1", "1.5", "٣", "1" * 5000)
    ]
    + [({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"), ({"SLURM_CPUS_ON_NODE": "0"}, "SLURM_CPUS_ON_NODE is '0'")],
    ids=lambda value: None if isinstance(value, str) else " ".join(f"{k}={v}"[:24] for k, v in value.items()),
)
def test_an_environment_that_no_launcher_makes(monkeypatch, environment, message):
    monkeypatch.setattr(launcher, "PAUSE", 0)
    put(monkeypatch, **environment)
    with pytest.raises(UserError) as error:
        launcher.check()
    assert message in str(error.value)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"WORLD_SIZE": "", "LOCAL_RANK": "", "RANK": " ", "MASTER_PORT": ""},
        PLACE,
        # Slurm's PMI counts nodes, the launcher of each node processes.
        PLACE | {"PMI_RANK": "0", "PMI_SIZE": "1", "SLURM_STEP_NUM_TASKS": "1"},
        {"PMI_RANK": "1", "PMI_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
        {"MASTER_ADDR": "gone.invalid", "MASTER_PORT": "29500"},
    ],
)
def test_an_environment_that_launchers_make(monkeypatch, environment):
    put(monkeypatch, **environment)
    launcher.check()
    assert "" not in {os.environ.get(name) for name in launcher.NUMBERS}


@pytest.mark.parametrize("name", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"])
def test_an_engine_without_its_launcher(monkeypatch, name):
    put(monkeypatch, FSDP_VERSION="2", **{name: "true"})
    with pytest.raises(UserError, match="ask.* for.* needs RANK, MASTER_ADDR, WORLD_SIZE, LOCAL_RANK, MASTER_PORT"):
        Runtime()


@pytest.mark.parametrize("name", ["ACCELERATE_USE_CPU", "ACCELERATE_DEBUG_MODE"])
def test_what_accelerate_does_not_understand_is_a_line(monkeypatch, name):
    put(monkeypatch, **{name: "garbage"})
    with pytest.raises(UserError, match="cannot start as the launcher's environment asks: .*garbage"):
        Runtime()


def test_an_empty_requeue_count_is_none(monkeypatch, tmp_path):
    put(monkeypatch, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="")
    assert claim(tmp_path).requeues == 0


def test_own_trouble_is_told_by_any_rank(monkeypatch, capsys):
    put(monkeypatch, **PLACE)

    def ended(seconds):
        raise InterruptedError("by the launcher, once the first rank has told")

    monkeypatch.setattr("time.sleep", ended)
    with pytest.raises(InterruptedError):
        tell(UserError("all have it"))
    assert capsys.readouterr().err == ""
    tell(OwnError("mine"))
    assert capsys.readouterr().err == "distvae: mine\n"
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    tell(UserError("this rank alone has it: nobody has ended it"))
    assert capsys.readouterr().err == "distvae: this rank alone has it: nobody has ended it\n"
    tell(PeerError("the main process has told"))
    assert capsys.readouterr().err == ""
    # A stray rank without a launcher silences nobody.
    monkeypatch.delenv("WORLD_SIZE")
    tell(UserError("alone"))
    assert capsys.readouterr().err == "distvae: alone\n"


@pytest.mark.parametrize("name", ["", "nowhere/code"])
def test_an_exit_file_that_cannot_be_written_is_a_warning(monkeypatch, tmp_path, capsys, name):
    put(monkeypatch, DISTVAE_EXIT_FILE=str(tmp_path / name) if name else "")
    launcher.leave_code(75)
    said = capsys.readouterr().err
    end = "cannot be written: No such file or directory; the exit code is 75\n"
    assert said == "" if not name else said.endswith(end)


def test_the_program_refuses_an_environment_with_one_line_and_leaves_nothing(tiny, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "distvae" / "train.py", tiny, f"run={tmp_path / 'run'}"],
        env={**os.environ, "WORLD_SIZE": "2", "DISTVAE_EXIT_FILE": str(tmp_path / "code")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("distvae: WORLD_SIZE=2 in the environment needs")
    assert not (tmp_path / "run").exists()
    assert (tmp_path / "code").read_text() == "2\n"


def test_the_timeout_is_no_part_of_what_is_trained(tiny):
    config = load_config(tiny, ["communication.timeout_minutes=0.5"])
    assert config.communication.timeout_minutes == 0.5
    with pytest.raises(UserError, match="timeout_minutes"):
        load_config(tiny, ["communication.timeout_minutes=0"])
