"""Shared types of config fields: their limits, and home directories."""

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from distvae.system.errors import UserError
from distvae.system.settings import (
    LARGEST_INT,
    AboveZero,
    Count,
    Folder,
    Location,
    OpenUnit,
    Positive,
    Probability,
    whole,
)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Count, [0, LARGEST_INT], [-1, LARGEST_INT + 1]),
        (Positive, [1], [0]),
        (AboveZero, [1e-300, 1e38], [0.0, 2e38]),
        (Probability, [0.0, 0.999], [-0.1, 1.0]),
        (OpenUnit, [0.5], [0.0, 1.0]),
        (Location, ["~/a"], ["", "a\0b"]),
    ],
)
def test_values_have_limits(kind, good, bad):
    adapter = TypeAdapter(kind)
    assert [adapter.validate_python(value) for value in good] == good
    for value in bad:
        with pytest.raises(ValidationError):
            adapter.validate_python(value)


def test_a_whole_number_has_limits():
    assert [whole("n", value, 1) for value in (1, np.int64(3), LARGEST_INT)] == [1, 3, LARGEST_INT]
    assert type(whole("n", np.int64(3), 1)) is int
    assert whole("seed", 10**30, 0, None) == 10**30
    for value in (0, -1, 1.0, True, "3", None):
        with pytest.raises(UserError, match=f"^n {value!r}: should be a whole number of at least 1$"):
            whole("n", value, 1)
    with pytest.raises(UserError, match="^n 2147483648: should be at most 2147483647$"):
        whole("n", 2**31, 1)


def test_a_folder_may_be_in_a_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    folder = TypeAdapter(Folder)
    assert folder.validate_python("~/runs") == "/home/me/runs"
    assert folder.validate_python("runs/~") == "runs/~"
    with pytest.raises(ValidationError, match="no such user"):
        folder.validate_python("~nobody-of-that-name/runs")
