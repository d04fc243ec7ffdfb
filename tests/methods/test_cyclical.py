"""γ of cyclical annealing, against the published schedule."""

import pytest

from distvae.config.kl import KLConfig
from distvae.methods.cyclical import Cyclical
from tests.methods.gamma import gamma_of


def published(step: int, steps: int, cycles: int, ramp: float) -> float:
    """β_t of Fu et al. (2019), equations 6 and 7, counted from step 0: T = ``steps``, M = ``cycles``, R = ``ramp``."""
    tau = (step % (steps / cycles)) / (steps / cycles)
    return tau / ramp if tau <= ramp else 1.0


def gamma_by_step(policy, epochs: int, batches: int) -> list[float]:
    seen = []
    for _ in range(epochs):
        for batch in range(batches):
            policy.start_step(batch / batches)
            seen.append(policy.value)
        policy.end_epoch(4.0)
    return seen


@pytest.mark.parametrize("ramp", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_gamma_follows_the_published_schedule(ramp, weight):
    options = Cyclical(cycles=3, cycle_epochs=2, ramp=ramp, weight=weight)
    seen = gamma_by_step(gamma_of(options), epochs=6, batches=5)
    assert seen == pytest.approx([weight * published(step, 30, 3, ramp) for step in range(30)])
    assert seen[0] == seen[10] == 0


def test_gamma_stays_at_its_end_after_the_last_cycle():
    policy = gamma_of(Cyclical(cycles=2, cycle_epochs=1))
    assert gamma_by_step(policy, epochs=4, batches=4)[8:] == [1.0] * 8


def test_weights_may_be_the_best_once_the_cycles_have_ended():
    policy = gamma_of(Cyclical(cycles=2, cycle_epochs=2))
    allowed = []
    for _ in range(6):
        policy.end_epoch(0.0)
        allowed.append(policy.may_be_best(0.0))
    assert allowed == [False] * 4 + [True] * 2


def test_its_options_are_keys_of_the_config():
    kl = KLConfig(policy="cyclical", cycles=2, cycle_epochs=5, ramp=1.0)
    assert kl.policy == Cyclical(cycles=2, cycle_epochs=5, ramp=1.0)
    assert (kl.policy.warm_up, kl.rate, kl.policy.autoencoder) == (10, None, False)
