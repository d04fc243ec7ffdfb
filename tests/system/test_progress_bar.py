import io
import sys

import pytest

from distvae.system import progress_bar
from distvae.system.progress_bar import Log, Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_shows_itself_and_its_values_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("train 3", 100, shown=True) as progress:
        assert progress.due
        progress.advance(25, left=3723, kl=4.125)
        progress._bar.refresh()
    for part in ("train 3", "25/100", "sentences", "kl=4.125", "run=1:02:03 left"):
        assert part in terminal.getvalue()


def test_progress_without_a_finished_sentence_still_shows_values(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("train 3", 100, shown=True) as progress:
        progress.advance(25, kl=4.125)
        progress.advance(0, kl=4.375)
        assert "kl=4.375" in terminal.getvalue()


@pytest.mark.parametrize(("stream", "shown"), [(io.StringIO, True), (Terminal, False)])
def test_progress_is_silent_without_a_terminal_and_when_it_is_told_so(stream, shown, monkeypatch, capsys):
    silent = stream()
    monkeypatch.setattr(sys, "stderr", silent)
    with Progress("train 3", 100, shown) as progress:
        assert not progress.due
        progress.advance(25, kl=4.125)
        progress.advance(75)
    assert silent.getvalue() == ""
    assert capsys.readouterr().out == ""


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets: seconds in a list of one."""
    now = [100.0]
    monkeypatch.setattr(progress_bar.time, "monotonic", lambda: now[0])
    return now


def test_a_log_file_gets_a_line_a_minute(monkeypatch, capsys, clock):
    log = Log("stdout")
    with Progress("train 3/20", 4000, shown=True, done=1000, log=log) as progress:
        progress.advance(500)
        assert not progress.due
        clock[0] += 60
        assert progress.due
        progress.advance(1000, left=3723, RE=1.25)
        assert not progress.due
    # The line says what has been done since this process began the epoch, and how fast.
    line = "train 3/20: 2,500 of 4,000 sentences, RE 1.250, 25/s, 0:01:00 left, 1:02:03 of the run\n"
    assert capsys.readouterr() == (line, "")
    with Progress("validate", 1, shown=True, log=log) as progress:  # the same log: short epochs share its minute
        progress.advance(1)
    clock[0] += 61
    with Progress("validate", 1, shown=True, log=log) as progress:
        progress.advance(1)
    assert capsys.readouterr().out.startswith("validate: 1 of 1 sentence, ")


def test_a_command_keeps_lines_out_of_its_output(capsys, clock):
    with Progress("score", 10, shown=True) as progress, Progress("score", 10, shown=False) as other:
        clock[0] += 60
        progress.advance(10)
        other.advance(10)
    assert capsys.readouterr() == ("", "score: 10 of 10 sentences, 0/s, 0:00:00 left\n")


def test_a_terminal_gets_no_lines(monkeypatch, capsys, clock):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress("score", 10, shown=True) as progress:
        clock[0] += 60
        progress.advance(10)
    assert "10 of 10" not in sys.stderr.getvalue()


def test_durations():
    assert [duration(seconds) for seconds in (0.4, 59.6, 3723)] == ["0:00:00", "0:01:00", "1:02:03"]
