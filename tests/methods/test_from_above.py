import math

import pytest

from distvae.config.kl import KLConfig
from distvae.methods.from_above import STEPS, FromAbove
from tests.methods.gamma import gamma_of

OPTIONS = FromAbove(target_rate=4.0, threshold=0.05, multiplier=0.1)


def weights(policy, kls: list[float]) -> list[float]:
    """γ after each interval."""
    seen = []
    for kl in kls:
        policy.end_interval(kl)
        seen.append(policy.value)
    return seen


def test_the_trajectory_of_the_rule_from_a_small_weight():
    policy = gamma_of(OPTIONS)
    assert policy.value == 0.1
    low, high = 0.1 * 0.9, 0.1 * 0.9 * 1.1 * 1.1
    seen = weights(policy, [0.5, 9.0, 4.3, 4.2, 3.8, 3.7, 1e3])
    assert seen == pytest.approx([low, low * 1.1, high, high, high, high * 0.9, high * 0.9 * 1.1], rel=1e-12)


def test_gamma_is_at_most_one():
    policy = gamma_of(OPTIONS)
    # ln 10 / ln 1.1 = 24.2
    assert weights(policy, [50.0] * 30)[23:26] == [pytest.approx(0.1 * 1.1**24), 1.0, 1.0]


def test_it_moves_within_epochs_and_not_at_their_ends():
    policy = gamma_of(OPTIONS)
    for kl in (0.0, 4.0, 50.0):
        policy.end_epoch(kl)
    assert (policy.value, policy.epochs) == (0.1, 3)
    assert KLConfig(policy="from_above").policy.interval == STEPS


def test_the_band_counts_only_once_the_kl_has_come_from_above():
    """On its way up the KL passes the band at a γ that has not been chosen yet."""
    policy = gamma_of(OPTIONS)
    for kl in (1.0, 4.0, 4.1, math.nan):
        policy.end_interval(kl)
        assert not policy.may_be_best(4.0)
    policy.end_interval(4.3)
    assert not policy.may_be_best(4.3)
    policy.end_interval(4.2)
    assert policy.may_be_best(3.8)
    assert not policy.may_be_best(math.nextafter(3.8, 0))
    # It has arrived, wherever it goes from there.
    for kl in (9.0, 0.0):
        policy.end_interval(kl)
        assert policy.may_be_best(4.0)


@pytest.mark.parametrize("latent", ["alive", "weak", "hollow", "dead", None])
def test_weights_of_a_hollow_latent_are_not_the_best(latent):
    policy = gamma_of(OPTIONS)
    weights(policy, [9.0, 4.0])
    policy.end_epoch(4.0, latent)
    assert policy.may_be_best(4.0) == (latent not in ("hollow", "dead"))


@pytest.mark.parametrize("latent", ["dead", "hollow"])
def test_gamma_falls_to_its_least_while_the_latent_holds_nothing_whatever_the_kl(latent):
    policy = gamma_of(OPTIONS)
    policy.end_epoch(4.0, latent)
    assert weights(policy, [4.0, 9.0, 0.0]) == pytest.approx([0.09, 0.081, 0.0729])
    # ln 10 / -ln 0.9 = 21.9
    assert weights(policy, [9.0] * 30)[-12:] == [pytest.approx(0.1 * 0.9**22)] * 12
    assert not policy.in_band
    policy.end_epoch(9.0, "alive")
    assert weights(policy, [9.0, 4.0]) == pytest.approx([0.1 * 0.9**22 * 1.1] * 2)
    assert policy.in_band


def test_a_hollow_latent_does_not_raise_a_gamma_below_its_least():
    policy = gamma_of(OPTIONS)
    weights(policy, [0.0] * 30)
    low = policy.value
    policy.end_epoch(0.0, "hollow")
    assert weights(policy, [0.0, 9.0]) == [low, low] == pytest.approx([0.1 * 0.9**30] * 2)


def test_a_kl_that_full_weight_cannot_lower_has_arrived():
    policy = gamma_of(OPTIONS)
    weights(policy, [50.0] * 25)
    assert (policy.value, policy.may_be_best(50.0)) == (1.0, False)
    policy.end_interval(50.0)
    assert policy.may_be_best(50.0)


def test_it_needs_no_warm_up():
    assert (OPTIONS.warm_up, OPTIONS.rate, OPTIONS.autoencoder) == (0, 4.0, False)
