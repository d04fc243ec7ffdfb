import io
import sys

import pytest

from distvae.system.progress_bar import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_shows_itself_and_its_values_on_a_terminal(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress("train 3", 100, shown=True) as progress:
        assert progress.shown
        progress.advance(25, kl=4.125)
        progress._bar.refresh()
    for part in ("train 3", "25/100", "sentences", "kl=4.125"):
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
        assert not progress.shown
        progress.advance(25, kl=4.125)
        progress.advance(75)
    assert silent.getvalue() == ""
    assert capsys.readouterr().out == ""
