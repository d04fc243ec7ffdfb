"""Values and times as text."""

import pytest

from distvae.sweeps.labels import format_duration, format_trials, format_value, format_values, label


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"), (9.4, "9.4 s"), (12.3, "12 s"), (59.7, "1 min 0 s"), (61, "1 min 1 s"), (3599.7, "1 h 0 min"),
        (90_000, "25 h 0 min"),
    ],
)  # fmt: skip
def test_a_time_in_its_two_greatest_units(seconds, text):
    assert format_duration(seconds) == text


def test_values_in_a_few_characters():
    assert [format_value(v) for v in (0.123456, 1e-5, 4, 4.0, True, None, "x")] == [
        "0.1235", "1e-05", "4", "4", "true", "null", "x",
    ]  # fmt: skip


def test_keys_of_the_paper_have_its_letters():
    assert label("kl.target_rate") == "λ kl.target_rate"
    assert label("optimizer.learning_rate") == "optimizer.learning_rate"
    assert format_values({"kl.target_rate": 4.0, "optimizer.name": "sgd"}) == "λ = 4, optimizer.name = sgd"


def test_numbers_of_trials_are_listed_up_to_twenty():
    assert format_trials([4]) == "trial 4"
    assert format_trials([1, 4]) == "trials 1, 4"
    assert format_trials(list(range(25))) == f"trials {', '.join(map(str, range(20)))} and 5 more"
