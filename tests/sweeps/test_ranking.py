"""How trials are judged and ranked."""

import math
import random
from dataclasses import replace

import pytest

from distvae.config.kl import KLConfig
from distvae.runs.records import read_metrics
from distvae.sweeps.ranking import Outcome, front, judged_epochs, outcome, rank, score, why_not_best
from distvae.sweeps.specification import ObjectiveConfig
from tests.sweep_folders import records, scores, write_run

NLL = ObjectiveConfig()


def came_to(
    nll: float = 20.0, kl: float = 4.0, rate: float | None = 4.0, mi: float = 3.0, units: int = 3, sentences: int = 1000
) -> Outcome:
    return Outcome(5, 0.5, rate, replace(scores(nll, kl, mi, units), sentences=sentences))


def test_a_kl_misses_by_what_it_is_beyond_its_tolerance():
    assert came_to(kl=4.375).violation(NLL) == 0
    assert came_to(kl=4.5).violation(NLL) == pytest.approx(0.1)
    assert came_to(kl=3.5).violation(NLL) == pytest.approx(0.1)
    assert came_to(kl=3.5).violation(replace(NLL, kl_tolerance=None)) == 0
    assert came_to(kl=0.5, rate=0.0).violation(NLL) == 0.5
    assert came_to(kl=0.5, rate=None, mi=0.5).violation(NLL) == 0  # without a λ there is nothing to be off


def test_a_latent_misses_by_the_information_that_it_lacks():
    assert came_to(mi=1.5).violation(NLL) == 0.5  # half of λ
    assert came_to(kl=6.0, rate=None, mi=1.0).violation(NLL) == 2.0  # half of the KL
    assert came_to(kl=0.02, rate=None, mi=0.0).violation(NLL) == 0.3
    assert came_to(kl=1.91, rate=2.0, mi=0.0, units=0).violation(NLL) == 1.0
    assert came_to(kl=9.0, mi=0.0).violation(NLL) == pytest.approx(4.6 + math.log(1000) / 2)
    assert came_to(mi=0.0, sentences=1).violation(NLL) == 0
    assert came_to(mi=0.0).violation(replace(NLL, require_alive=False)) == 0


def test_a_language_model_has_no_latent_that_could_be_dead():
    found = came_to(kl=0.0, rate=None, mi=0.0, units=0)
    exact = replace(found, scores=replace(found.scores, kl_per_dimension=()))
    assert (found.latent, exact.latent) == ("dead", None)
    assert found.violation(NLL) > 0
    assert exact.violation(NLL) == 0
    assert exact.shortcomings(NLL) == ""


def test_a_dead_latent_whose_kl_is_right_does_not_win():
    """Its KL is in its band, its NLL is the lowest, and it tells nothing."""
    found = {
        0: came_to(nll=25.0, kl=1.91, rate=2.0, mi=0.0, units=0),
        1: came_to(nll=28.1, kl=2.1, rate=2.0, mi=1.9),
        2: came_to(nll=28.4, kl=4.1, mi=3.5),
        3: came_to(nll=27.0, kl=4.0, mi=1.9),  # hollow, by little
        4: came_to(nll=26.0, kl=0.0, rate=None, mi=0.0),  # of a policy without a λ
        5: came_to(nll=28.2, kl=3.0, rate=None, mi=2.5),  # alive, and held to no λ
    }
    assert rank(NLL, found) == [1, 5, 2, 3, 4, 0]
    assert why_not_best(NLL, found) == (
        "trial 0 has a lower NLL (25.00), but its latent is dead (MI 0.00): it ranks behind"
    )
    assert rank(replace(NLL, require_alive=False), found)[0] == 0
    assert why_not_best(replace(NLL, require_alive=False), found) is None
    assert why_not_best(NLL, {1: found[1], 2: found[2]}) is None
    assert why_not_best(NLL, {}) is None
    high = ObjectiveConfig(metric="mutual_information")
    assert why_not_best(high, {0: came_to(mi=3.0), 1: came_to(mi=5.0, kl=9.0)}) == (
        "trial 1 has a higher MI (5.00), but its KL of 9.00 is off (λ = 4): it ranks behind"
    )


def test_a_trial_whose_kl_is_right_goes_before_any_whose_kl_is_not():
    found = {
        0: came_to(nll=10.0, kl=0.1),  # collapsed, and the best by NLL
        1: came_to(nll=25.0, kl=4.1),
        2: came_to(nll=24.0, kl=3.9),
        3: came_to(nll=30.0, kl=3.5),
        4: came_to(nll=24.0, kl=4.0),  # as good as 2: by number
        5: came_to(nll=11.0, kl=4.6),
    }
    assert rank(NLL, found) == [2, 4, 1, 3, 5, 0]
    assert rank(replace(NLL, kl_tolerance=None), found) == [0, 5, 2, 4, 1, 3]
    assert score(NLL, found[1]) == 25.0
    assert rank(NLL, {}) == []


@pytest.mark.parametrize(("metric", "second", "sign"), [("nll", "mutual_information", -1), ("kl", "ppl", 1)])
def test_a_trial_whose_kl_is_wrong_is_behind_by_its_second_metric_too(metric, second, sign):
    """Or its information, which is high where the KL is, would have it kept."""
    both = ObjectiveConfig(metric=metric, second=second)
    right, near, far = came_to(mi=3.0), came_to(mi=8.0, kl=9.0), came_to(mi=9.0, kl=12.0)
    assert score(both, right, second=True) == right.metrics[second]
    told = [sign * score(both, one, second=True) for one in (right, near, far)]
    assert told[0] < 1000 < told[1] < told[2]


def test_what_should_be_high_is_ranked_from_above():
    high = ObjectiveConfig(metric="mutual_information")
    found = {0: came_to(mi=2.0), 1: came_to(mi=3.0), 2: came_to(mi=9.0, kl=9.0), 3: came_to(mi=8.0, kl=8.0)}
    assert high.mode == "max"
    assert rank(high, found) == [1, 0, 3, 2]
    assert rank(replace(high, direction="min"), found) == [0, 1, 3, 2]


def test_the_front_is_what_brute_force_finds():
    both = ObjectiveConfig(second="mutual_information")
    chance = random.Random(0)
    for _ in range(50):
        found = {
            number: came_to(
                nll=chance.randint(20, 26), mi=chance.randint(0, 5), kl=chance.choice([3.9, 4.0, 4.1, 1.0, 9.0])
            )
            for number in chance.sample(range(100), 12)
        }
        right = {number: one for number, one in found.items() if one.kl_off(both) == 0 and one.latent == "alive"}

        def beats(a: Outcome, b: Outcome) -> bool:
            no_worse = a.nll <= b.nll and a.mutual_information >= b.mutual_information
            return no_worse and (a.nll, a.mutual_information) != (b.nll, b.mutual_information)

        expected = [n for n in sorted(right) if not any(beats(other, right[n]) for other in right.values())]
        assert front(both, found) == expected


def test_a_kl_that_is_wrong_does_not_buy_its_way_into_the_front():
    both = ObjectiveConfig(second="mutual_information")
    found = {0: came_to(nll=20, mi=3), 1: came_to(nll=19, mi=8, kl=9.0), 2: came_to(nll=18, mi=0, kl=0.0)}
    assert front(both, found) == [0]
    assert front(replace(both, kl_tolerance=None), found) == [1]
    assert front(replace(both, kl_tolerance=None, require_alive=False), found) == [1, 2]
    assert front(both, {1: found[1], 2: found[2]}) == [1]  # none is right: the nearest
    assert front(both, {}) == []


def test_an_outcome_is_of_the_epoch_that_was_kept(ask, tmp_path):
    config = ask().config_of({"kl.target_rate": 8}, tmp_path)
    write_run(tmp_path / "trial", scores(20.0, 4.0, 3.0, 2, gap=1.5), epochs=8, pretrain=2)
    rows = read_metrics(tmp_path / "trial")
    assert outcome(config, rows) == Outcome(7, 0.6, 8.0, scores(20.0, 4.0, 3.0, 2, gap=1.5))
    assert outcome(config, rows[:2]) is None  # pretraining alone
    assert outcome(config, []) is None
    assert outcome(config, rows[:3]).epoch == 1  # no best yet: the last
    assert outcome(config, rows[:4]).epoch == 2
    assert outcome(config, rows[:6]).epoch == 4
    linear = replace(config, kl=KLConfig(policy="linear"))
    assert outcome(linear, rows).target_rate is None
    assert outcome(replace(config, kl=KLConfig(policy="linear", free_bits="batch")), rows).target_rate == 4.0


def test_epochs_are_judged_from_the_end_of_annealing(ask, tmp_path):
    config = ask().config_of({}, tmp_path)
    last = scores(20.0, 4.0, 3.0, 2)
    rows = records(last, epochs=5, pretrain=9)[8:]
    assert [judged_epochs(config, rows[: n + 1]) for n in range(6)] == [0, 0, 0, 0, 1, 2]
    assert judged_epochs(config, []) == 0
    constant = replace(config, kl=KLConfig(policy="constant"))
    assert judged_epochs(constant, rows) == 5
