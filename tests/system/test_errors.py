"""Errors are one short line, and one process of a machine prints them."""

import pytest

from distvae.system import errors
from distvae.system.errors import LONGEST, OwnError, PeerError, UserError, one_line, reason, tell


@pytest.fixture
def waits(monkeypatch):
    """The seconds that processes have waited for another to print."""
    seconds = []
    monkeypatch.setattr(errors.time, "sleep", seconds.append)
    return seconds


def test_a_message_is_one_line_of_limited_length():
    assert str(UserError("a\nb\tc")) == "a\\nb\\tc"
    line = one_line("<" + "x" * 10 * LONGEST + ">")
    assert len(line) == LONGEST + len(" … ")
    assert line.startswith("<x")
    assert line.endswith("x>")
    assert one_line("x" * LONGEST) == "x" * LONGEST


@pytest.mark.parametrize(
    ("rank", "size", "waited"),
    [
        (None, None, False),
        ("0", "2", False),
        ("1", "2", True),
        ("1", "1", False),
        ("1", None, False),
        ("one", "2", False),
    ],
)
def test_the_first_process_of_a_machine_prints_at_once(monkeypatch, capsys, waits, rank, size, waited):
    for name, value in (("LOCAL_RANK", rank), ("WORLD_SIZE", size)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    tell(UserError("bad"))
    # A process that is still alive after its wait was alone with the error.
    assert waits == [errors.WAIT] * waited
    assert capsys.readouterr() == ("", "distvae: bad\n")


@pytest.mark.parametrize(("error", "own"), [(OwnError("bad"), False), (UserError("bad"), True)])
def test_an_error_of_one_process_is_printed_whatever_its_rank(monkeypatch, capsys, waits, error, own):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    tell(error, own)
    assert waits == []
    assert capsys.readouterr().err == "distvae: bad\n"


def test_an_error_that_another_process_prints_is_not_printed_again(capsys, waits):
    tell(PeerError("bad"))
    assert waits == [errors.WAIT]
    assert capsys.readouterr() == ("", "")


def test_the_reason_is_the_first_line_of_the_root_cause():
    error = OSError("outer")
    error.__cause__ = ValueError("inner\nmore")
    assert reason(error) == "ValueError: inner"
