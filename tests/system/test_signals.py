"""Signals that tell a program to stop: recorded, raised, restored, and sent when the launcher dies."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from distvae.system import signals as module
from distvae.system.signals import INTERRUPTED, SIGNALS, Signals
from tests.conftest import wait_for_file


@pytest.fixture
def signals():
    installed = Signals()
    installed.install()
    yield installed
    installed.restore()


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.01)  # a handler runs between two steps of the interpreter


@pytest.mark.parametrize("number", SIGNALS)
def test_a_deferred_signal_is_recorded(signals, number):
    with signals.deferred():
        send(number)
        assert signals.asked == signal.Signals(number).name


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_there_is_anything_to_save_ends_at_once(signals, number):
    with pytest.raises(KeyboardInterrupt, match=signal.Signals(number).name):
        send(number)


@pytest.mark.parametrize(
    ("first", "second", "ends"),
    [
        (signal.SIGINT, signal.SIGINT, True),
        # A launcher, its cluster and the end of the launcher may each send one.
        (signal.SIGTERM, signal.SIGTERM, False),
        (signal.SIGINT, signal.SIGTERM, False),
        (signal.SIGUSR1, signal.SIGTERM, False),
    ],
)
def test_a_second_interrupt_ends_at_once(signals, first, second, ends):
    with signals.deferred():
        send(first)
        if ends:
            with pytest.raises(KeyboardInterrupt):
                send(second)
        else:
            send(second)
        assert signals.asked == signal.Signals(first).name  # the first one is the reason


def test_the_previous_handlers_are_restored():
    former = [signal.getsignal(number) for number in SIGNALS]
    signals = Signals()
    signals.install()
    assert [signal.getsignal(number) for number in SIGNALS] != former
    signals.restore()
    assert [signal.getsignal(number) for number in SIGNALS] == former


def test_a_signal_that_came_while_the_program_was_loaded_is_not_lost():
    """Its launcher blocks it, so that it waits."""
    code = "import os, signal; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1}); "
    code += (
        "os.kill(os.getpid(), signal.SIGUSR1); from distvae.train import main; raise SystemExit(main(['none.yaml']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == INTERRUPTED, done.stderr
    assert done.stderr == ""


def test_a_run_under_nohup_does_not_hear_the_terminal_hang_up():
    code = "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    code += "from distvae.system.signals import Signals; "
    code += "s = Signals(); s.install(); os.kill(os.getpid(), signal.SIGHUP); print(s.asked)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "None\n"


@pytest.mark.parametrize(("first", "now", "gone"), [(7, 1, True), (1, 1, False), (7, 7, False)])
def test_a_launcher_that_died_early_is_missed_and_the_first_process_is_no_sign_of_it(monkeypatch, first, now, gone):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setattr(module, "_PARENT", first)
    monkeypatch.setattr(module, "signal_of_parents_death", lambda number: None)
    monkeypatch.setattr(os, "getppid", lambda: now)
    handlers = Signals()
    try:
        with pytest.raises(KeyboardInterrupt, match="has gone") if gone else contextlib.nullcontext():
            handlers.install()
    finally:
        handlers.restore()


def test_a_process_is_told_when_its_launcher_dies(tmp_path):
    """The launcher is killed outright; its process hears of it as of a SIGTERM."""
    child = (
        "import os, time; from distvae.system.signals import Signals; s = Signals(); s.install();"
        f" s._deferred = True; open({str(tmp_path / 'ready')!r}, 'w').close()\n"
        f"while s.asked is None: time.sleep(0.01)\n"
        f"with open({str(tmp_path / 'new')!r}, 'w') as file: file.write(s.asked)\n"
        f"os.rename({str(tmp_path / 'new')!r}, {str(tmp_path / 'told')!r})"
    )
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    environment = {**os.environ, "ACCELERATE_MIXED_PRECISION": "no"}
    process = subprocess.Popen([sys.executable, "-c", launcher], env=environment)
    for name, action in (("ready", process.kill), ("told", process.wait)):
        wait_for_file(tmp_path / name)
        action()
    assert (tmp_path / "told").read_text() == "SIGTERM"
