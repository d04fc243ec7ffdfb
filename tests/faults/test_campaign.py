"""A short campaign: each kind of kill, other numbers of processes, two starts of one run. The long one is a command:
``python -m tests.faults --kills 100``."""

from dataclasses import astuple

import pytest

from tests.faults import scenes
from tests.faults.campaign import ALONE, KILLS, WAYS, Campaign, Chain, Kill, Way, chains
from tests.faults.victim import Orders, Places

# Position and visit are shares of where the place lies, and of how often it is passed there.
SHORT = [
    Chain(
        1, ALONE, "sgd", False,
        (
            Kill("KILL all", "save", 0, 0.1, 0.3),
            Kill("KILL all", "stage change", 0, 0.5, 0.7),
            Kill("TERM all", "validation", 0, 0.5, 0.5),
            Kill("KILL all", "end", 0, 0.9, 0.2),
        ),
    ),
    Chain(
        2, Way("ZeRO-2", 2), "adamw", False,
        (
            Kill("KILL one rank", "step", 1, 0.2, 0.0),
            Kill("TERM one rank", "step", 1, 0.6, 0.0),
            Kill("KILL all", "any time", 0, 0.8, 0.3),
        ),
    ),
    Chain(
        3, Way("DDP", 2), "sgd", True,
        (
            Kill("KILL launcher", "step", 0, 0.2, 0.0),
            Kill("TERM launcher", "save", 0, 0.5, 0.5),
            Kill("INT launcher", "record", 0, 0.7, 0.0),
        ),
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    with Campaign(tmp_path_factory.mktemp("faults")) as campaign:
        yield campaign


@pytest.mark.cluster
@pytest.mark.parametrize("chain", SHORT, ids=lambda chain: str(chain.way))
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(campaign, chain):
    outcomes = campaign.carry_out(chain)
    assert [outcome.kill for outcome in outcomes] == list(chain.kills)
    assert [outcome.faults for outcome in outcomes] == [[]] * len(outcomes)
    assert all(outcome.resumed and outcome.equal for outcome in outcomes)


@pytest.mark.cluster
def test_the_number_of_processes_may_change_from_start_to_start(campaign):
    faults, difference = scenes.by_turns(campaign)
    assert faults == []
    assert max(astuple(difference)) < 1e-4


# In the midst of a checkpoint; where it would put older weights in the place of a later start's.
@pytest.mark.cluster
@pytest.mark.parametrize(("place", "after", "skip"), [("save", 40, 3), ("export best", 40, 0)])
def test_an_overtaken_start_stops_and_changes_nothing(campaign, place, after, skip):
    assert scenes.overtaken(campaign, place, after, skip) == []


@pytest.mark.cluster
def test_a_second_start_is_refused_while_the_first_lives(campaign):
    assert scenes.refused(campaign) == []


def test_the_short_campaign_has_every_kind_of_kill():
    assert {kill.what for chain in SHORT for kill in chain.kills} == set(KILLS)


def test_a_seed_draws_the_same_chains_each_time():
    def drawn(seed):
        return [chain for chain, _ in zip(chains(seed, WAYS), range(60), strict=False)]

    assert drawn(3) == drawn(3) != drawn(4)
    kills = [kill for chain in drawn(3) for kill in chain.kills]
    assert {kill.what for kill in kills} == set(KILLS)
    assert all(kill.rank < chain.way.processes for chain in drawn(3) for kill in chain.kills)
    assert all(chain.launched for chain in drawn(3) for kill in chain.kills if "launcher" in kill.what)


def test_a_place_is_met_once_and_by_its_rank(tmp_path):
    (tmp_path / "go").touch()
    places = Places(Orders(str(tmp_path), "save", rank=1, after=5, skip=1), rank=1)
    met = []
    for step in (4, 5, 5, 6):
        places.step = step
        places.visit("step", "elsewhere", lambda: met.append("elsewhere"))
        places.visit("save", "here", lambda step=step: met.append(step))
        assert (tmp_path / "here").exists() == (len(met) == 1)
    assert len(met) == 1
    other = Places(Orders(str(tmp_path), "save", rank=1), rank=0)
    other.visit("save", "here", lambda: met.append("another rank"))
    assert len(met) == 1
