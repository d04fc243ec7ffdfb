"""What ``python -m tests.numbers`` takes for the same."""

import pytest

from tests.compare import TIMES, timeless
from tests.numbers import compare, flatten

BEFORE = {
    "train 1 valid re mean": "16.5",
    "train 2 valid re mean": "16.25",
    "best/model.safetensors decoder.output.weight": "F32 [2] 9f86d0",
}


def test_what_is_equal_is_the_same():
    assert compare(BEFORE, dict(reversed(BEFORE.items()))) == (True, "same")


@pytest.mark.parametrize(("key", "value"), [(key, f"{value}0") for key, value in BEFORE.items()])
def test_a_differing_metric_or_weight_is_told_with_both_values(key, value):
    well, line = compare(BEFORE, BEFORE | {key: value})
    assert not well
    assert line == f"DIFFERS in 1 of 3 values, first in {key}: {BEFORE[key]} → {value}"


def test_the_first_of_several_differences_is_told():
    line = compare(BEFORE, dict.fromkeys(BEFORE, "0"))[1]
    assert line == "DIFFERS in 3 of 3 values, first in train 1 valid re mean: 16.5 → 0"


def test_a_missing_key_is_a_difference_and_a_new_one_is_none():
    line = "same; new keys: train 2 valid kl mean"
    more = BEFORE | {"train 2 valid kl mean": "0.5"}
    assert compare(BEFORE, more) == (True, line)
    assert compare(more, BEFORE) == (
        False,
        "DIFFERS in 1 of 4 values, first in train 2 valid kl mean: 0.5 → missing",
    )


def test_a_run_that_fails_proves_nothing():
    failed = "ended with 2: distvae: no"
    assert compare(failed, failed) == (False, "FAILED: the revision's ended with 2: distvae: no")
    assert compare(BEFORE, failed) == (False, "FAILED: this tree's ended with 2: distvae: no")


def test_a_run_that_the_revision_refuses_is_new():
    refused = "ended with 2: distvae: kl.policy = 'lagrangian': input should be 'constant' or 'linear'"
    assert compare(refused, {"a": "1"})[0]
    assert not compare(refused, refused)[0]
    assert not compare("ended with 1: Traceback", {"a": "1"})[0]


def test_values_are_exact_and_lists_have_their_lengths():
    content = {"re": {"mean": 0.1 + 0.2}, "kl": [1, None], "latent": {"state": "dead", "advice": "more epochs"}}
    assert dict(flatten(content, "train 1")) == {
        "train 1 re mean": "0.30000000000000004",
        "train 1 kl length": "2",
        "train 1 kl 0": "1",
        "train 1 kl 1": "None",
        "train 1 latent state": "'dead'",
    }


def test_what_tells_the_time_is_left_out_wherever_it_stands():
    times = dict.fromkeys(TIMES, 1.5)
    assert timeless({"step": 3, "train": {"re": 2.0, **times}, "stages": [{"epochs": 2, **times}], **times}) == {
        "step": 3,
        "train": {"re": 2.0},
        "stages": [{"epochs": 2}],
    }
