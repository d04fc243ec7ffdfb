"""How values are drawn."""

import math

import pytest

from distvae.sweeps.space import Dimension, Seeded


def test_draws_fill_their_range_evenly(ask):
    asked = ask(
        space={
            "optimizer.learning_rate": {"log_uniform": [0.01, 1.0]},
            "model.dropout": {"uniform": [0.2, 0.4]},
            "kl.anneal_epochs": {"integer": [2, 5]},
            "kl.free_bits": {"choice": ["none", "batch"]},
        },
        num_samples=800,
    )
    points = asked.points()
    for key, low, high, change in (
        ("optimizer.learning_rate", 0.01, 1.0, math.log10),
        ("model.dropout", 0.2, 0.4, float),
    ):
        values = [change(values[key]) for values in points]
        assert change(low) <= min(values)
        assert max(values) <= change(high)
        middle = (change(low) + change(high)) / 2
        assert sum(value < middle for value in values) / 800 == pytest.approx(0.5, abs=0.08)
    assert {type(values["kl.anneal_epochs"]) for values in points} == {int}
    for key, kinds in (("kl.anneal_epochs", {2, 3, 4, 5}), ("kl.free_bits", {"none", "batch"})):
        found = [values[key] for values in points]
        assert set(found) == kinds
        assert all(found.count(kind) / 800 == pytest.approx(1 / len(kinds), abs=0.08) for kind in kinds)


def test_chance_names_what_it_draws():
    assert Seeded(1, 2).uniform("a", 0.0, 1.0, False) == Seeded(1, 2).uniform("b", 0.0, 1.0, False)
    assert Seeded(1, 2).uniform("a", 0.0, 1.0, False) != Seeded(1, 3).uniform("a", 0.0, 1.0, False)
    assert 0.001 <= Seeded(0).uniform("a", 0.001, 0.002, True) <= 0.002


@pytest.mark.parametrize(
    ("settings", "extremes", "numeric"),
    [
        ({"grid": (4, 2)}, (4, 2), True),
        ({"choice": (None, 5.0)}, (None, 5.0), False),
        ({"choice": (True, False)}, (True, False), False),
        ({"uniform": (0.1, 0.5)}, (0.1, 0.5), True),
        ({"integer": (1, 3)}, (1, 3), True),
    ],
)
def test_a_dimension_knows_its_ends_and_whether_they_are_numbers(settings, extremes, numeric):
    dimension = Dimension(**settings)
    assert dimension.extremes == extremes
    assert dimension.numeric is numeric
    assert dimension.values == (extremes if {"grid", "choice"} & settings.keys() else ())


def test_a_grid_is_not_drawn():
    with pytest.raises(ValueError, match="seed: a grid is listed"):
        Dimension(grid=(0, 1)).draw("seed", Seeded(0))
