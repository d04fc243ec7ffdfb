"""The cost model against times worked out by hand, and its fits."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distvae.system.errors import UserError
from scaling.costs import ENGINES, Collective, Gradient, Work, step_collectives
from scaling.machine import ASSUMED, Machine, Network, fit_compute, fit_network, predict

WORK = Work((Gradient("a", (300, 100)), Gradient("b", (300, 100))), flops=1000, draws=10)


def test_a_ring_passes_an_all_reduce_around_twice():
    network = Network(latency=2.0, bandwidth=100.0)
    assert network.seconds("all_reduce", 800, 4) == 2 * 3 * 2.0 + 2 * (3 / 4) * 800 / 100
    assert network.seconds("all_gather", 800, 4) == network.seconds("reduce_scatter", 800, 4) == 3 * 2.0 + 6.0
    assert network.seconds("all_reduce", 800, 1) == 0


def test_two_levels_add_up():
    machine = Machine(1.0, 0.0, 1.0, per_node=4, inside=Network(1.0, 100.0), across=Network(10.0, 50.0))
    message = Collective("gradients", "all_reduce", 800)
    # Reduce-scatter and all-gather inside, each 3 · 1 + 3/4 · 800/100; across 2 nodes 2 · 10 + 800/50.
    assert machine.seconds(message, 8) == 2 * (3 + 6) + 20 + 16
    assert machine.seconds(message, 2) == 2 * (1 + 4)
    with pytest.raises(UserError, match="6 processes fill no whole number of nodes of 4"):
        machine.seconds(message, 6)


def test_a_predicted_step_is_what_adds_up_by_hand():
    # Each byte takes a second per pass over a ring of two; a sentence takes 1 s of arithmetic and 0.5 s of draws.
    machine = Machine(1000.0, 6.0, 20.0, per_node=1, inside=Network(0, 1.0), across=Network(0.0, 100.0))
    sent = [
        Collective("every step", "all_reduce", 1200),  # 12 s
        Collective("half of it", "all_gather", 400),  # 2 s
        Collective("now and then", "all_reduce", 800, per_step=1 / 8),  # 8 s
    ]
    found = predict(WORK, sent, machine, processes=2, batch=6)
    assert found.sending == 12 + 2 + 1
    assert found.step == 6 + 3 * (1 + 0.5) + 15
    # With an odd batch, the larger half counts; a process without a sentence takes as long as the others.
    assert predict(WORK, sent, machine, processes=2, batch=5).step == found.step
    assert predict(WORK, sent, machine, processes=2, batch=1).step == 6 + 1 + 0.5 + 15


seconds = st.floats(1e-6, 1e-1)


@given(
    st.sampled_from(list(ENGINES)), st.sampled_from([8, 64, 512]), seconds, seconds, st.sampled_from([1e10, 1e12, 1e15])
)
def test_from_the_least_batch_on_sending_takes_its_share(engine, processes, overhead, latency, flops):
    work = Work((Gradient("a", (3000, 100)), Gradient("b", (3000, 100))), flops=10**8, draws=5000)
    machine = replace(ASSUMED, step_overhead=overhead, flops=flops, across=Network(latency, 1e9))
    sent = step_collectives(work, engine, processes)

    def share(batch):
        found = predict(work, sent, machine, processes, batch)
        return found.sending / found.step

    least = predict(work, sent, machine, processes, processes).least_batch
    assert least % processes == 0
    assert share(least) <= 0.1 + 1e-9
    if least > processes:
        assert share(least - processes) > 0.1 - 1e-9


def test_fits_find_the_constants_that_made_the_times():
    network = Network(latency=3e-4, bandwidth=2e8)
    found = fit_network({size: network.seconds("all_reduce", size, 4) for size in (1024, 2**16, 2**22)}, 4)
    assert found.latency == pytest.approx(3e-4)
    assert found.bandwidth == pytest.approx(2e8)
    flops, overhead = fit_compute({each: 0.05 + each * WORK.flops / 2e5 for each in (1, 4, 16)}, WORK)
    assert flops == pytest.approx(2e5)
    assert overhead == pytest.approx(0.05)


def test_times_that_do_not_grow_are_no_ring():
    with pytest.raises(UserError, match="all-reduce times do not grow"):
        fit_network({1024: 1.0, 2**22: 0.5}, 2)
