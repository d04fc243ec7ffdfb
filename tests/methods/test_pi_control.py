"""γ of a PI controller, step by step."""

import itertools
import math

import pytest

from distvae.config.kl import KLConfig
from distvae.methods.pi_control import PIControl
from tests.methods.gamma import gamma_of, steps


def test_gamma_is_the_controllers_by_hand():
    policy = gamma_of(PIControl(target_rate=4.0, proportional=0.01, integral=0.001))
    assert policy.value == 0.0
    # Errors −6, −1, 2: the integral is 0.006, 0.007, 0.005.
    expected = [
        0.01 / (1 + math.exp(-6)) + 0.006,
        0.01 / (1 + math.exp(-1)) + 0.007,
        0.01 / (1 + math.exp(2)) + 0.005,
    ]
    assert steps(policy, [10.0, 5.0, 2.0]) == pytest.approx(expected, rel=1e-6)


def test_gamma_leaves_its_bounds_as_soon_as_the_error_turns():
    policy = gamma_of(PIControl(target_rate=4.0, integral=0.1))
    assert steps(policy, [2.0] * 50)[-1] < 0.01  # nothing but the proportional part
    rising = steps(policy, [9.0] * 50)
    assert rising[0] > 0.4
    assert rising[-1] == 1.0
    assert steps(policy, [3.0])[0] < 0.92


def test_gamma_rises_above_lambda_and_falls_below_it():
    policy = gamma_of(PIControl(target_rate=4.0))
    assert all(b > a for a, b in itertools.pairwise(steps(policy, [9.0] * 20)))
    assert all(b < a for a, b in itertools.pairwise(steps(policy, [3.0] * 20)))


def test_gamma_goes_on_from_that_of_the_best_weights():
    policy = gamma_of(PIControl(target_rate=4.0))
    steps(policy, [9.0] * 20)
    policy.return_to(0.5)
    assert steps(policy, [4.0])[0] == pytest.approx(0.505)


def test_weights_may_be_the_best_with_a_kl_near_lambda():
    policy = gamma_of(PIControl(target_rate=4.0))
    assert [policy.may_be_best(kl) for kl in (0.0, 3.79, 3.81, 9.0)] == [False, False, True, True]


def test_its_options_are_keys_of_the_config():
    kl = KLConfig(policy="pi_control", target_rate=6.0, proportional=0.1, integral=0.01)
    assert kl.policy == PIControl(target_rate=6.0, proportional=0.1, integral=0.01)
    assert (kl.rate, kl.policy.warm_up, kl.policy.autoencoder, kl.policy.interval) == (6.0, 0, False, None)
