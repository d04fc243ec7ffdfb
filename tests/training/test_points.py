import math

import pytest
import torch

from distvae.methods.annealing import Linear
from distvae.training.points import Points
from distvae.training.stages import EpochProgress
from distvae.training.step import Sums
from tests.methods.gamma import gamma_of


def steps(epoch: EpochProgress, *values: tuple[float, float, float], norms: list[float]) -> None:
    for sentences, re, kl in values:
        epoch.sums.add(torch.tensor([[sentences, re, 99.0, kl / 2, kl / 2]]))
    epoch.norms.add([torch.tensor(norm) for norm in norms])


@pytest.fixture
def epoch() -> EpochProgress:
    return EpochProgress(Sums(2, torch.device("cpu")))


@pytest.fixture
def gamma():
    gamma = gamma_of(Linear())
    gamma.value = 0.25
    return gamma


def test_a_point_is_the_mean_over_the_steps_since_the_last_one(epoch, gamma):
    steps(epoch, (8, 800.0, 80.0), norms=[50.0])  # before the resume
    points = Points(epoch)
    steps(epoch, (8, 80.0, 8.0), (2, 30.0, 12.0), norms=[1.0, 4.0])
    assert points.take(gamma, 0.5) == {
        "step/re": 11.0, "step/kl": 2.0, "step/kl_weight": 0.25, "step/learning_rate": 0.5, "step/gradient_norm": 2.5,
    }  # fmt: skip
    steps(epoch, (4, 12.0, 2.0), norms=[3.0])
    assert points.take(gamma, 0.5)["step/re"] == 3.0


def test_skipped_steps_are_left_out_and_nothing_else_is_no_point(epoch, gamma):
    points = Points(epoch)
    steps(epoch, (0, 0.0, 0.0), norms=[math.inf])
    assert points.take(gamma, 0.5) == {}
    steps(epoch, (0, 0.0, 0.0), (4, 12.0, 2.0), norms=[math.nan, 3.0])
    assert points.take(gamma, 0.5)["step/gradient_norm"] == 3.0
