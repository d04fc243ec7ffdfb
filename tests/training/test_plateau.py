import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distvae.config.schema import PlateauConfig
from distvae.training.plateau import Plateau, Verdict

IMPROVED, WAIT, DECAY, STOP = Verdict.IMPROVED, Verdict.WAIT, Verdict.DECAY, Verdict.STOP
LOSS = st.integers(0, 5).map(float) | st.sampled_from([math.inf, math.nan])


def papers() -> Plateau:
    return Plateau(PlateauConfig(), learning_rate=0.5)


def followed(plateau: Plateau, losses: list[float]) -> list[tuple[Verdict, float]]:
    """The verdict on each loss, and the learning rate after it."""
    return [(plateau.observe(loss), plateau.learning_rate) for loss in losses]


def test_the_papers_schedule_by_hand():
    plateau = papers()
    assert followed(plateau, [9.0, 8.0, 8.5, 7.0, 7.5, 7.5]) == [
        (IMPROVED, 0.5), (IMPROVED, 0.5), (WAIT, 0.5), (IMPROVED, 0.5), (WAIT, 0.5), (DECAY, 0.25),
    ]  # fmt: skip
    assert followed(plateau, [7.1, 6.9, 7.0, 7.0, 7.0, 7.0]) == [
        (WAIT, 0.25), (IMPROVED, 0.25), (WAIT, 0.25), (DECAY, 0.125), (WAIT, 0.125), (DECAY, 0.0625),
    ]  # fmt: skip
    assert followed(plateau, [6.0, 6.5, 6.5, 5.0, 6.0, 4.0, 9.0, 9.0]) == [
        (IMPROVED, 0.0625), (WAIT, 0.0625), (DECAY, 0.03125), (IMPROVED, 0.03125), (WAIT, 0.03125),
        (IMPROVED, 0.03125), (WAIT, 0.03125), (STOP, 0.015625),
    ]  # fmt: skip
    assert (plateau.best, plateau.decays) == (4.0, 5)


def test_five_decays_without_improvement_stop():
    verdicts = [verdict for verdict, _ in followed(papers(), [1.0] + [2.0] * 10)]
    assert verdicts == [IMPROVED] + [WAIT, DECAY] * 4 + [WAIT, STOP]


@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("max_decays", [1, 2])
def test_patience_and_number_of_decays_are_settings(patience, max_decays):
    plateau = Plateau(PlateauConfig(patience=patience, decay=0.25, max_decays=max_decays), 1.0)
    verdicts = [verdict for verdict, _ in followed(plateau, [1.0] + [2.0] * patience * max_decays)]
    waits = [WAIT] * (patience - 1)
    assert verdicts == [IMPROVED] + (waits + [DECAY]) * (max_decays - 1) + waits + [STOP]
    assert plateau.learning_rate == 0.25**max_decays


@pytest.mark.parametrize("loss", [3.0, math.nextafter(3.0, 4), math.inf, math.nan])
def test_what_is_not_lower_is_no_improvement(loss):
    plateau = papers()
    assert [verdict for verdict, _ in followed(plateau, [3.0, loss, loss])] == [IMPROVED, WAIT, DECAY]
    assert plateau.best == 3.0


def test_any_lower_loss_is_an_improvement():
    assert [verdict for verdict, _ in followed(papers(), [3.0, math.nextafter(3.0, 0)])] == [IMPROVED, IMPROVED]


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_first_loss_that_is_not_finite_is_no_best(loss):
    plateau = papers()
    assert plateau.observe(loss) is WAIT
    assert plateau.best is None
    assert plateau.observe(1.0) is IMPROVED


@settings(max_examples=60, deadline=None)
@given(losses=st.lists(LOSS, max_size=30))
def test_counts_add_up(losses):
    plateau = papers()
    verdicts = [verdict for verdict, _ in followed(plateau, losses)]
    lowest = [
        min((loss for loss in losses[:i] if not math.isnan(loss)), default=math.inf) for i in range(len(losses) + 1)
    ]
    assert plateau.best == (None if lowest[-1] == math.inf else lowest[-1])
    assert plateau.decays == verdicts.count(DECAY) + verdicts.count(STOP)
    assert plateau.learning_rate == 0.5 * 0.5**plateau.decays
    assert [verdict is IMPROVED for verdict in verdicts] == [
        loss < low for loss, low in zip(losses, lowest, strict=False)
    ]


@settings(max_examples=60, deadline=None)
@given(losses=st.lists(LOSS, max_size=20), cut=st.integers(0, 20))
def test_it_goes_on_from_its_saved_state(losses, cut):
    straight, first = papers(), papers()
    followed(straight, losses[:cut])
    followed(first, losses[:cut])
    resumed = Plateau(PlateauConfig(), learning_rate=99.0)
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert resumed == straight
    assert followed(resumed, losses[cut:]) == followed(straight, losses[cut:])
