import multiprocessing
import os
import signal
import time
from dataclasses import replace

import pytest

from distvae.config.schema import DataConfig
from distvae.data import corpus, sharding, workplace
from distvae.data.workers import KilledError, map_numbers
from distvae.system.errors import UserError
from distvae.system.files import write_text
from distvae.system.signals import SIGNALS, Signals
from tests.conftest import wait_for_file, wait_until
from tests.data.corpora import write_folder


def squared(number):
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


@pytest.mark.parametrize("processes", [1, 3])
def test_each_number_is_taken_once_and_in_order(processes):
    assert map_numbers([3, 1, 4, 2], squared, processes, "Squaring") == [9, 1, 16, 4]


# Often, because a pool of processes that waits for a dead one does so only now and then.
@pytest.mark.parametrize("time", range(10))
@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_process_is_reported(busy, time):
    def step(number):
        if busy and number < 13:
            wait_until(lambda: False, "the first process dies")
        return squared(number)

    numbers = [0, 13] if busy else range(20)
    with pytest.raises(KilledError, match=r"data.workers: one of 2 processes .* was killed.*data.workers=1"):
        map_numbers(numbers, step, 2, "Squaring")
    assert multiprocessing.active_children() == []


def test_a_process_may_be_killed_while_it_waits(tmp_path):
    """An idle process holds the lock of the queue of numbers."""
    idle = tmp_path / "idle"

    def step(number):
        if number:
            wait_for_file(idle)
            time.sleep(0.5)  # until that process has left its step
            os.kill(int(idle.read_text()), signal.SIGKILL)
            wait_until(lambda: False, "the parent ends this process")
        write_text(idle, str(os.getpid()))

    with pytest.raises(KilledError):
        map_numbers([0, 1], step, 2, "Waiting")
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("processes", [1, 2])
def test_the_error_of_a_step_ends_all_processes(processes):
    def step(number):
        if number == 0:
            raise UserError("a.txt: is no text")
        wait_until(lambda: False, "the first step fails")

    with pytest.raises(UserError, match=r"^a.txt: is no text$"):
        map_numbers([0, 1, 2], step, processes, "Reading")
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_all_processes_at_once(number):
    """It may be sent to all processes, as Slurm and a terminal do, and the others leave it to the first."""

    def step(place):
        os.kill(os.getpid(), number)
        if place:
            os.kill(os.getppid(), number)
        wait_until(lambda: False, "the parent ends this process")

    former = {number: signal.getsignal(number) for number in SIGNALS}
    signals = Signals()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signals.install()
    try:
        with pytest.raises(KeyboardInterrupt, match=signal.Signals(number).name):
            map_numbers([0, 1], step, 2, "Waiting")
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
    assert multiprocessing.active_children() == []


def test_what_was_finished_before_a_process_was_killed_is_kept(tmp_path, monkeypatch):
    folder = write_folder(
        tmp_path / "text", train="".join(f"w{i % 9} x\n" for i in range(300)), valid="x\n", test="x\n"
    )
    real, taken = sharding._encode, []

    def encode(rows, number, **given):
        if number == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(rows, number, **given)

    monkeypatch.setattr(sharding, "_encode", encode)
    data = DataConfig(path=folder, cache=str(tmp_path / "cache"), shard_size=8, workers=2, min_count=1)
    with pytest.raises(KilledError):
        corpus.prepare(data, progress=False)
    (left,) = (tmp_path / "cache").iterdir()
    assert left.name.endswith(f"-{workplace.WORK}")

    def watched(rows, number, **given):
        taken.append(number)
        return real(rows, number, **given)

    monkeypatch.setattr(sharding, "_encode", watched)
    found = corpus.prepare(replace(data, workers=1), progress=False)
    assert len(corpus.load(found).train) == 300
    assert 30 in taken
    assert 0 not in taken
