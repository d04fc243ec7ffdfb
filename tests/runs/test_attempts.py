"""Attempts at a run have numbers, and the last one counts."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading

import pytest

from distvae.runs import attempts
from distvae.runs.attempts import Lease, SupersededError, claim, read_attempts, responsible
from distvae.system.errors import UserError
from tests.conftest import PATIENCE, wait_until

# An attempt in a process of its own, which prints its number and lives until its input ends.
CLAIM = """
import sys
from pathlib import Path
from distvae.runs.attempts import Lease, claim
run = Path(sys.argv[1])
attempt = claim(run)
lease = Lease(run, attempt)
print(attempt.number, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def other(tmp_path):
    """Starts the run in another process."""
    processes = []

    def start(**environment):
        process = subprocess.Popen(
            [sys.executable, "-c", CLAIM, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        processes.append(process)
        assert process.stdout.readline().strip().isdecimal()
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def elsewhere(monkeypatch):
    """Makes earlier attempts those of another machine, with a short time between heartbeats."""
    monkeypatch.setattr(attempts, "_kernel", lambda: "another kernel")
    monkeypatch.setattr(attempts, "BEAT", 0.05)
    monkeypatch.setattr(attempts, "PATIENCE", 0.4)


def test_a_second_attempt_is_refused_while_the_first_lives(tmp_path, other):
    process = other()
    with pytest.raises(UserError, match=f"attempt 1 is training it, as process {process.pid} on ") as caught:
        claim(tmp_path)
    assert "\n" not in str(caught.value)
    assert [start.number for start in read_attempts(tmp_path)] == [1]


def test_a_dead_attempt_bars_nobody(tmp_path, other):
    process = other()
    process.kill()
    process.wait()
    assert not read_attempts(tmp_path)[0].ended
    assert claim(tmp_path).number == 2


def test_a_process_with_the_number_of_a_dead_one_is_another(tmp_path):
    claim(tmp_path)
    path = tmp_path / "starts" / "0001.json"
    content = json.loads(path.read_text()) | {"born": "7"}  # this process's number, but not this process
    path.write_text(json.dumps(content))
    assert claim(tmp_path).number == 2


def test_an_attempt_that_has_ended_bars_nobody_though_its_process_lives(tmp_path):
    Lease(tmp_path, claim(tmp_path)).release()
    assert read_attempts(tmp_path)[0].ended
    assert claim(tmp_path).number == 2


@pytest.mark.parametrize("content", ["", '{"number": 1', "[]", '{"number": 1}'])
def test_an_attempt_whose_file_is_truncated_counts_and_is_dead(tmp_path, content):
    (tmp_path / "starts").mkdir()
    (tmp_path / "starts" / "0001.json").write_text(content)
    assert claim(tmp_path).number == 2


def test_an_attempt_elsewhere_lives_while_its_heart_beats(tmp_path, elsewhere, monkeypatch):
    monkeypatch.setattr(attempts, "_kernel", lambda: "that kernel")
    lease = Lease(tmp_path, claim(tmp_path))
    monkeypatch.setattr(attempts, "_kernel", lambda: "this kernel")
    with monkeypatch.context() as patient:
        patient.setattr(attempts, "PATIENCE", PATIENCE)
        with pytest.raises(UserError, match="attempt 1 is training it"):
            claim(tmp_path)
    lease._ended.set()
    lease._thread.join()
    assert claim(tmp_path).number == 2


def test_an_attempt_elsewhere_without_a_heartbeat_is_dead(tmp_path, other, elsewhere, capsys):
    other()
    assert claim(tmp_path).number == 2  # its own beat is slower than the patience here
    assert "waiting for a heartbeat of attempt 1" in capsys.readouterr().err


@pytest.mark.parametrize(("requeues", "goes"), [("1", True), ("0", False)])
def test_a_requeued_job_supersedes_only_its_own_processes(tmp_path, other, monkeypatch, requeues, goes):
    other(SLURM_JOB_ID="7", SLURM_RESTART_COUNT="0")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_RESTART_COUNT", requeues)
    if goes:
        assert claim(tmp_path).number == 2
        return
    with pytest.raises(UserError, match="attempt 1 is training it"):
        claim(tmp_path)


def test_another_job_is_refused(tmp_path, other, monkeypatch):
    other(SLURM_JOB_ID="7")
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    with pytest.raises(UserError, match="attempt 1 is training it"):
        claim(tmp_path)


def test_simultaneous_attempts_have_different_numbers_or_are_refused(tmp_path):
    """Twelve at once: whoever has the last number is the one that counts, and nobody shares one."""
    code = "import sys; from pathlib import Path; from distvae.runs.attempts import claim\n"
    code += "print(claim(Path(sys.argv[1])).number)"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"{code}; sys.stdout.flush(); sys.stdin.readline()", str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(12)
    ]
    numbers = [line for process in processes if (line := process.stdout.readline().strip())]
    for process in processes:
        process.communicate("\n")
    assert numbers
    assert len(set(numbers)) == len(numbers)
    assert [start.number for start in read_attempts(tmp_path)] == [*range(1, len(numbers) + 1)]


# -- Being overtaken ---------------------------------------------------------------------------------------------------


def test_an_attempt_sees_that_another_has_taken_over(tmp_path, elsewhere):
    lease = Lease(tmp_path, claim(tmp_path))
    lease.check()
    (tmp_path / "starts" / "0002.json").write_text("")
    with pytest.raises(SupersededError, match="attempt 2 has taken over; attempt 1 stops") as caught:
        lease.check()
    assert "\n" not in str(caught.value)
    lease._thread.join(PATIENCE)
    assert not lease._thread.is_alive()
    before = (tmp_path / "starts" / "0001.json").read_bytes()
    lease.release()  # which is no longer its to say
    assert (tmp_path / "starts" / "0001.json").read_bytes() == before


def test_the_heartbeat_sees_it_by_itself(tmp_path, elsewhere):
    lease = Lease(tmp_path, claim(tmp_path))
    (tmp_path / "starts" / "0002.json").write_text("")
    wait_until(lambda: lease.lost, "the heartbeat sees it")


def test_an_attempt_whose_folder_is_gone_stops(tmp_path, elsewhere):
    lease = Lease(tmp_path, claim(tmp_path))
    (tmp_path / "starts" / "0001.json").unlink()
    lease._thread.join(PATIENCE)
    with pytest.raises(SupersededError, match="its folder is gone; attempt 1 stops"):
        lease.check()


def test_an_attempt_whose_folder_was_created_again_stops(tmp_path, other):
    """It has the same number as the one that started in the new folder."""
    lease = Lease(tmp_path, claim(tmp_path))
    shutil.rmtree(tmp_path / "starts")
    other()
    before = (tmp_path / "starts" / "0001.json").read_bytes()
    with pytest.raises(
        SupersededError, match=r"process \d+ on .* has started it again in a new folder; attempt 1 stops"
    ):
        lease.check()
    lease.release()
    assert (tmp_path / "starts" / "0001.json").read_bytes() == before
    with pytest.raises(UserError, match="attempt 1 is training it"):
        claim(tmp_path)


def test_an_attempt_that_could_not_say_that_it_ended_does_not_hold_its_own_process(tmp_path, monkeypatch):
    lease = Lease(tmp_path, claim(tmp_path))
    with pytest.raises(UserError, match="attempt 1 is training it"):
        claim(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(attempts, "write_json", full)
        lease.release()
    assert not read_attempts(tmp_path)[0].ended
    assert claim(tmp_path).number == 2


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_attempt_whose_file_is_being_written_is_waited_for(tmp_path, other):
    other()
    path = tmp_path / "starts" / "0001.json"
    whole = path.read_bytes()
    path.write_bytes(b"")
    threading.Timer(0.2, path.write_bytes, [whole]).start()
    with pytest.raises(UserError, match="attempt 1 is training it"):
        claim(tmp_path)


# -- Whose records count -----------------------------------------------------------------------------------------------


def test_records_count_up_to_where_the_next_attempt_resumed(tmp_path):
    for recorded in (0, 20, None, 10):
        lease = Lease(tmp_path, claim(tmp_path))
        if recorded is not None:
            lease.begin(recorded)
        lease.release()
    found = read_attempts(tmp_path)
    assert [start.recorded_step for start in found] == [0, 20, None, 10]
    # The third never came to record anything; the fourth went further back than the second.
    assert [responsible(found, step) for step in (1, 10, 11, 20, 21, 30)] == [1, 1, 4, 4, 4, 4]
    assert [responsible(found[:3], step) for step in (1, 20, 21)] == [1, 1, 2]
    assert responsible([], 5) == 0
