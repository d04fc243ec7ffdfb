from dataclasses import dataclass

import pytest

from distvae.training.outlook import Outlook


@dataclass
class Part:
    """What an outlook reads of a stage."""

    name: str
    max_epochs: int


PRETRAIN, TRAIN = Part("pretrain", 2), Part("train", 10)


def test_a_first_epoch_is_scaled_by_what_is_done_of_it():
    outlook = Outlook([PRETRAIN, TRAIN])
    assert outlook.left(PRETRAIN, 0, 0.0, 0.0) is None
    # A quarter of an epoch took 15 seconds: 45 more, and 11 epochs of 60.
    assert outlook.left(PRETRAIN, 0, 0.25, 15.0) == pytest.approx(45 + 11 * 60)


def test_a_later_epoch_takes_as_long_as_the_last_with_its_validation():
    outlook = Outlook([PRETRAIN, TRAIN])
    outlook.end_epoch(PRETRAIN, 60.0)
    outlook.end_epoch(TRAIN, 100.0)
    assert outlook.left(TRAIN, 4, 0.5, 40.0) == pytest.approx(60 + 5 * 100)
    assert outlook.left(TRAIN, 9, 0.9, 120.0) == 0.0  # slower than the last
