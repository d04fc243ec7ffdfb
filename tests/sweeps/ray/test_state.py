"""A sweep's records and its time."""

import pytest

from distvae.sweeps.progress import Trial

pytest.importorskip("ray", reason="no Ray: pip install -e '.[sweep]'")


def test_the_time_of_places_adds_up_however_many_there_are(state_of, clock):
    state = state_of()
    state.trials, state.running = {0: Trial(0, {}), 1: Trial(1, {})}, {1}
    for slots, seconds in ((2, 10.0), (8, 3.0)):
        state.progress.slots = slots
        with state.timed("trial_seconds"):
            clock.now += seconds
    assert (state.progress.trial_seconds, state.progress.place_seconds) == (13.0, 2 * 10.0 + 8 * 3.0)
    assert [state.trials[number].seconds for number in (0, 1)] == [0.0, 13.0]


@pytest.mark.parametrize(
    ("hours", "failed", "ended_by"),
    [(1, None, "stop.hours = 1 have passed"), (None, 2, "2 trials have failed, stop.failed = 2"), (2, 3, None)],
)
def test_a_limit_ends_the_sweep(state_of, clock, hours, failed, ended_by):
    state = state_of(stop={"hours": hours, "failed": failed})
    state.trials = {number: Trial(number, {}, "failed") for number in range(2)}
    clock.now += 3601.0
    state.check_limits()
    assert state.ended_by == ended_by


def test_trials_get_20_seconds_to_save_themselves_and_none_after_the_lease_is_lost(state_of, clock):
    state = state_of()
    state.signals.received = "SIGTERM"
    deadline = state.request_save()
    assert deadline == clock.now + 20.0
    clock.now += 5.0
    assert state.request_save() == deadline
    state.lease.lost = True
    assert state.request_save() == clock.now
