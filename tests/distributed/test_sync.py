"""All ranks learn of signals and failures at the same step."""

import math

import pytest
import torch

from distvae.distributed import sync
from distvae.distributed.runtime import Runtime
from distvae.distributed.sync import Agreement, RankSync
from distvae.system.signals import Signals


class Several:
    """As many ranks as there are values to be put together with one's own."""

    def __init__(self, *others):
        self.others = others

    def max(self, values: torch.Tensor) -> torch.Tensor:
        return torch.stack([values, *self.others]).amax(dim=0)


NONE = torch.full((), math.inf, dtype=torch.float64)


def rank(stop=0.0, overtaken=0.0, failed=0.0, save=0.0, seconds=0.0, bad_step=math.inf) -> torch.Tensor:
    return torch.tensor([stop, overtaken, failed, save, seconds, -bad_step], dtype=torch.float64)


def test_a_single_rank_agrees_with_itself():
    runtime, signals = Runtime(), Signals()
    ranks = RankSync(runtime, signals)
    assert ranks.sync(NONE) == Agreement(False, False, False, False, None)
    assert ranks.sync(torch.tensor(15.0, dtype=torch.float64), save=True) == Agreement(False, False, False, True, 15)
    signals.asked = "SIGTERM"
    assert ranks.sync(NONE, overtaken=True, failed=True) == Agreement(True, True, True, False, None)
    runtime.close()


def test_what_one_rank_knows_all_learn():
    for other, expected in [
        (rank(stop=1), Agreement(True, False, False, False, None)),
        (rank(overtaken=1), Agreement(False, True, False, False, None)),
        (rank(failed=1, save=1), Agreement(False, False, True, True, None)),
        (rank(bad_step=7), Agreement(False, False, False, False, 7)),
    ]:
        assert RankSync(Several(rank(), other), Signals()).sync(NONE) == expected
    # The first bad step of all.
    ranks = RankSync(Several(rank(bad_step=9), rank(bad_step=12)), Signals())
    assert ranks.sync(torch.tensor(11.0, dtype=torch.float64)).bad_step == 9


@pytest.mark.parametrize(("seconds", "steps"), [(0.1, 10), (0.26, 3), (5.0, 1), (1e-5, sync.SYNC_STEPS)])
def test_the_slowest_rank_sets_the_pace_of_all(seconds, steps):
    ranks = RankSync(Several(rank(seconds=seconds)), Signals())
    assert ranks.due()  # after the first step, because the pace is unknown
    ranks.sync(NONE)
    assert [ranks.due() for _ in range(steps)] == [False] * (steps - 1) + [True]
    ranks.sync(NONE)
    ranks.reset_pace()
    assert ranks.due()
