import json
import math
from typing import get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distvae.config.kl import KLConfig
from distvae.config.sections import declared
from distvae.methods import FREE_BITS, POLICIES
from distvae.methods.annealing import Linear
from distvae.methods.soft_free_bits import AnnealedThenSteered, SoftFreeBits
from tests.methods.gamma import gamma_of, steps

TENTHS = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
TENTHS_FROM_0 = [0.0, *TENTHS[:-1]]
RATE, THRESHOLD, MULTIPLIER = 4.0, 0.05, 0.1
CEILING, FLOOR = (1 + THRESHOLD) * RATE, (1 - THRESHOLD) * RATE
KL = st.floats(0, 20) | st.sampled_from([RATE, CEILING, FLOOR])


def soft_free_bits(anneal_epochs: int = 0, every_steps: int | None = None) -> AnnealedThenSteered:
    return gamma_of(options(THRESHOLD, MULTIPLIER, anneal_epochs, every_steps))


def options(
    threshold: float, multiplier: float, anneal_epochs: int = 0, every_steps: int | None = None
) -> SoftFreeBits:
    return SoftFreeBits(
        target_rate=RATE,
        threshold=threshold,
        multiplier=multiplier,
        anneal_epochs=anneal_epochs,
        every_steps=every_steps,
    )


def weights(policy, kls: list[float]) -> list[float]:
    """γ in each epoch, where an epoch's KL is known at its end."""
    seen = []
    for kl in kls:
        seen.append(policy.value)
        policy.end_epoch(kl)
    return seen


# -- Soft free bits ----------------------------------------------------------------------------------------------------


def test_the_trajectory_of_algorithm_1():
    # An epoch's KL and the γ of that epoch; λ = 4, so that the band is 3.8 … 4.2.
    annealing = [
        (50.0, 0.1), (0.0, 0.2), (4.0, 0.3), (9.0, 0.4), (1.0, 0.5),
        (9.0, 0.6), (9.0, 0.7), (9.0, 0.8), (9.0, 0.9), (9.0, 1.0),
    ]  # fmt: skip
    rule = [
        (3.0, 1.0),  # epoch 10's KL would raise γ, which is at its cap
        (2.0, 0.9),
        (4.0, 0.9 * 0.9),
        (3.9, 0.9 * 0.9),
        (4.1, 0.9 * 0.9),
        (5.0, 0.9 * 0.9),
        (5.0, 0.9 * 0.9 * 1.1),
        (5.0, 0.9 * 0.9 * 1.1 * 1.1),
        (0.5, 1.0),  # not 1.078…
        (4.0, 0.9),
    ]
    kls, expected = zip(*annealing + rule, strict=True)
    assert weights(gamma_of(KLConfig().policy), list(kls)) == list(expected)


@settings(max_examples=50, deadline=None)
@given(kls=st.lists(KL, min_size=10, max_size=10))
def test_annealing_is_in_tenths_whatever_the_kl(kls):
    assert weights(soft_free_bits(10), kls) == TENTHS


@pytest.mark.parametrize("anneal_epochs", [0, 1, 2, 5])
def test_the_rule_first_acts_after_the_last_annealing_epoch(anneal_epochs):
    expected = [(epoch + 1) / anneal_epochs for epoch in range(anneal_epochs)] or [1.0]
    assert weights(soft_free_bits(anneal_epochs), [0.0] * (len(expected) + 2)) == [*expected, 0.9, 0.9 * 0.9]


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (RATE, 1),
        (CEILING, 1),
        (FLOOR, 1),
        (math.nextafter(CEILING, math.inf), 1.1),
        (math.nextafter(FLOOR, -math.inf), 0.9),
        (1000.0, 1.1),
        (0.0, 0.9),
    ],
)
def test_the_band_holds_its_edges(kl, factor):
    policy = soft_free_bits()
    policy.value = 0.5
    policy.end_epoch(kl)
    assert policy.value == 0.5 * factor
    assert policy.in_band == (factor == 1)


def test_without_a_threshold_the_band_is_the_target():
    policy = gamma_of(options(0.0, 0.1))
    assert weights(policy, [4.0, math.nextafter(4.0, 0), 4.0, math.nextafter(4.0, 5), 4.0]) == [
        1,
        1,
        0.9,
        0.9,
        0.9 * 1.1,
    ]


@settings(max_examples=100, deadline=None)
@given(kls=st.lists(KL, max_size=40), threshold=st.floats(0, 0.9), multiplier=st.floats(0.01, 0.99))
def test_gamma_stays_above_zero_and_at_most_one_and_moves_against_the_kl(kls, threshold, multiplier):
    policy = gamma_of(options(threshold, multiplier))
    for kl in kls:
        before = policy.value
        policy.end_epoch(kl)
        assert 0 < policy.value <= 1
        if kl <= RATE:
            assert policy.value <= before
        if kl >= RATE:
            assert policy.value >= before


def test_every_steps_moves_gamma_at_intervals_once_annealing_has_ended():
    policy = gamma_of(KLConfig(anneal_epochs=2, every_steps=100).policy)
    seen = []
    for epoch in range(4):
        seen.append(policy.value)
        for kl in (0.0, 0.0, 4.0) if epoch < 3 else (9.0, 0.0):
            policy.end_interval(kl)
            seen.append(policy.value)
        policy.end_epoch(0.0)
    low = 0.9 * 0.9
    assert seen == [
        0.5, 0.5, 0.5, 0.5,
        1.0, 1.0, 1.0, 1.0,
        1.0, 0.9, low, low,
        low, low * 1.1, low * 1.1 * 0.9,
    ]  # fmt: skip


def test_every_steps_leaves_gamma_at_the_end_of_an_epoch():
    policy = soft_free_bits(every_steps=5)
    policy.end_interval(0.0)
    for kl in (0.0, 4.0, 50.0):
        policy.end_epoch(kl)
        assert policy.value == 0.9
        assert not policy.in_band


# -- May these weights be the best? ------------------------------------------------------------------------------------


def test_no_weights_of_annealing_are_the_best():
    policy = soft_free_bits(3)
    for _ in range(3):
        assert not policy.may_be_best(RATE)
        policy.end_epoch(RATE)
    assert not policy.may_be_best(RATE)
    policy.end_epoch(RATE)
    assert policy.may_be_best(RATE)


def test_a_kl_in_the_band_during_annealing_does_not_count():
    policy = soft_free_bits(3)
    for kl in (RATE, RATE, 0.0, 0.0):
        policy.end_epoch(kl)
    assert not policy.in_band
    assert not policy.may_be_best(RATE)


def test_no_weights_are_the_best_before_the_kl_has_been_in_its_band():
    policy = soft_free_bits()
    for kl in (2.0, 2.0, 9.0, math.nextafter(CEILING, 9), math.nextafter(FLOOR, 0)):
        policy.end_epoch(kl)
        assert not policy.may_be_best(RATE)
    policy.end_epoch(CEILING)
    assert policy.may_be_best(RATE)
    for kl in (9.0, 2.0):
        policy.end_epoch(kl)
        assert policy.may_be_best(RATE)


def test_a_kl_above_the_band_at_full_weight_is_no_collapse():
    """Nothing more can be done against it, so the run need not wait for the band."""
    policy = soft_free_bits()
    policy.end_epoch(9.0)
    assert policy.value == 1.0
    assert policy.may_be_best(9.0)
    policy = soft_free_bits()
    policy.value = 0.5
    policy.end_epoch(9.0)
    assert not policy.may_be_best(9.0)


def test_a_kl_that_is_no_number_moves_nothing():
    policy = soft_free_bits()
    policy.end_epoch(math.nan)
    assert (policy.value, policy.in_band) == (1.0, False)


def test_an_interval_in_the_band_counts_too():
    policy = soft_free_bits(1, every_steps=5)
    policy.end_interval(RATE)
    policy.end_epoch(9.0)
    assert not policy.in_band
    policy.end_interval(RATE)
    policy.end_interval(9.0)
    policy.end_epoch(9.0)
    assert policy.may_be_best(RATE)


@pytest.mark.parametrize(
    ("valid_kl", "expected"),
    [
        (FLOOR, True),
        (RATE, True),
        (100.0, True),
        (math.nextafter(FLOOR, 0), False),
        (0.0, False),
        (math.nan, False),
    ],
)
def test_collapsed_weights_are_never_the_best(valid_kl, expected):
    policy = soft_free_bits()
    policy.end_epoch(RATE)
    assert policy.may_be_best(valid_kl) is expected


# -- Linear and constant -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [1.0, 0.5, 0.0])
def test_linear_rises_in_equal_steps_and_stays(end):
    policy = gamma_of(KLConfig(policy="linear", weight=end).policy)
    assert weights(policy, [math.nan, 0.0, 4.0, 100.0] * 4) == [end * tenth for tenth in TENTHS] + [end] * 6


@pytest.mark.parametrize("name", ["linear", "soft_free_bits"])
def test_annealing_by_step_rises_evenly_from_0_to_its_end(name):
    policy = gamma_of(KLConfig(policy=name, anneal_epochs=2, anneal_by="step").policy)
    seen = []
    for _ in range(4):
        for batch in range(5):
            policy.start_step(batch / 5)
            seen.append(policy.value)
        policy.end_epoch(4.0)  # within the band
    assert seen == pytest.approx(TENTHS_FROM_0 + [1.0] * 10)


def test_steering_begins_from_1_after_annealing_by_step():
    policy = gamma_of(SoftFreeBits(anneal_epochs=1, anneal_by="step", target_rate=RATE, multiplier=MULTIPLIER))
    policy.start_step(0.9)
    assert policy.value == 0.9
    policy.end_epoch(0.0)
    assert policy.value == 0.9  # 1 · (1 − χ)
    policy.start_step(0.5)
    assert policy.value == 0.9


def test_linear_has_no_best_before_annealing_has_ended():
    policy = gamma_of(Linear(anneal_epochs=3))
    allowed = []
    for _ in range(5):
        policy.end_epoch(0.0)
        allowed.append(policy.may_be_best(0.0))
    assert allowed == [False, False, False, True, True]


@pytest.mark.parametrize("end", [0.0, 0.3, 1.0, 2.0])
def test_constant_never_moves_and_takes_any_epoch(end):
    policy = gamma_of(KLConfig(policy="constant", weight=end).policy)
    for kl in (0.0, 4.0, 100.0):
        assert policy.value == end
        policy.end_interval(kl)
        assert policy.value == end
        policy.end_epoch(kl)
        assert policy.may_be_best(0.0)


# -- The registry, and state -------------------------------------------------------------------------------------------


def test_the_config_takes_what_the_registry_holds():
    for name, kind in POLICIES.items():
        assert KLConfig(policy=name).policy == kind()


def test_components_that_share_an_option_give_it_one_default_and_meaning():
    seen = {}
    for kind in [*POLICIES.values(), *FREE_BITS.values()]:
        hints = get_type_hints(kind, include_extras=True)
        for name, default in declared(kind).items():
            assert seen.setdefault(name, (hints[name], default)) == (hints[name], default)


def test_policies_are_made_from_their_settings():
    settings = KLConfig(anneal_epochs=4, target_rate=6, threshold=0.2, multiplier=0.3, every_steps=9)
    assert settings.policy == SoftFreeBits(
        target_rate=6.0, threshold=0.2, multiplier=0.3, anneal_epochs=4, every_steps=9
    )
    linear = gamma_of(KLConfig(policy="linear", weight=0.7, anneal_epochs=4).policy)
    constant = gamma_of(KLConfig(policy="constant", weight=0.7).policy)
    assert [(each.value, each.end, each.anneal_epochs) for each in (linear, constant)] == [
        (0.175, 0.7, 4),
        (0.7, 0.7, 0),
    ]


@pytest.mark.parametrize("kl", [math.nan, math.inf])
@pytest.mark.parametrize("name", [name for name, kind in POLICIES.items() if kind.needs_step_kl])
def test_a_step_without_a_finite_kl_moves_nothing(name, kl):
    policy = gamma_of(POLICIES[name]())
    first, last = steps(policy, [1.0, 9.0])
    assert first != last
    before = policy.state_dict()
    steps(policy, [kl])
    assert policy.state_dict() == before


EVENTS = ["start_step", "end_step", "end_interval", "end_epoch"]


def observed(policy, events: list[tuple[str, float]]) -> list[tuple[float, bool]]:
    seen = []
    for event, kl in events:
        given = {"start_step": kl % 1, "end_step": torch.tensor(kl)}
        getattr(policy, event)(given.get(event, kl))
        seen.append((policy.value, policy.may_be_best(kl)))
    return seen


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(sorted(POLICIES)),
    every_steps=st.sampled_from([None, 7]),
    anneal_epochs=st.integers(0, 4),
    by=st.sampled_from(["epoch", "step"]),
    events=st.lists(
        st.tuples(st.sampled_from(["end_epoch", "end_interval", "start_step", "end_step"]), KL), max_size=20
    ),
    cut=st.integers(0, 20),
    decayed=st.booleans(),
)
def test_a_policy_goes_on_from_its_saved_state(name, every_steps, anneal_epochs, by, events, cut, decayed):
    settings = KLConfig(
        policy=name,
        **{"anneal_epochs": anneal_epochs, "anneal_by": by} if name in ("linear", "soft_free_bits") else {},
        **{"every_steps": every_steps} if name == "soft_free_bits" else {},
        **{"cycles": 2, "cycle_epochs": 3} if name == "cyclical" else {},
    )
    straight, first, resumed = (gamma_of(settings.policy) for _ in range(3))
    before, after = events[:cut], events[cut:]
    observed(straight, before)
    observed(first, before)
    if decayed:  # the best weights are back, with their γ
        straight.value = first.value = 0.25
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert resumed == straight
    assert observed(resumed, after) == observed(straight, after)
