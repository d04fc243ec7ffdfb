"""Axes for every kind of values."""

import pytest

from distvae.sweeps.axes import MISSING, axis_of, coordinate, plain, room, whole_ticks
from distvae.sweeps.space import Dimension


@pytest.mark.parametrize(
    ("settings", "kind", "ticks"),
    [
        ({"grid": (2, 4, 8)}, "linear", [2, 4, 8]),
        ({"grid": (1, 10, 1000)}, "log", [1, 10, 1000]),
        ({"grid": (0, 1, 1000)}, "linear", [0, 1, 1000]),
        ({"log_uniform": (0.01, 10.0)}, "log", [0.01, 0.1, 1.0, 10.0]),
        ({"log_uniform": (0.1, 0.2)}, "log", [0.1, 0.15, 0.2]),
    ],
)
def test_wide_values_have_a_logarithmic_axis(settings, kind, ticks):
    axis = axis_of(Dimension(**settings), [], "kl.multiplier")
    assert axis["type"] == kind
    assert axis["tickvals"] == pytest.approx(ticks)


def test_names_have_a_place_each():
    axis = axis_of(Dimension(choice=("none", "<b>")), [], "kl.free_bits")
    assert (axis["type"], axis["categoryarray"], axis["range"]) == ("category", ["none", "&lt;b>"], [-0.5, 1.5])


def test_a_missing_value_lies_below_all_others():
    axis = coordinate("χ", Dimension(uniform=(1.0, 3.0)), [2.0, MISSING, 3.0])
    low, *others = axis["tickvals"]
    assert axis["values"] == [2.0, low, 3.0]
    assert low < min(others)
    assert axis["ticktext"][0] == "–"


def test_integer_ticks_are_at_most_ten():
    assert whole_ticks([3, 1, 4]) == [1, 2, 3, 4]
    assert whole_ticks([1, 25]) == [1, 4, 7, 10, 13, 16, 19, 22, 25]


def test_a_single_value_has_room():
    assert room([0.0]) == [-0.5, 0.5]
    assert room([2.0, 4.0]) == pytest.approx([1.84, 4.16])


def test_plotly_gets_no_tags():
    assert plain("<a href=x>&amp;\x1b") == "&lt;a href=x>&amp;amp;\\x1b"
