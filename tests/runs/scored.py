"""Results of two runs that nobody trained: one with a dead latent, and one with a live one."""

import math
from dataclasses import replace

from distvae.evaluation.scores import Estimate, Floor, Scores
from distvae.runs.results import Results, StageEnd


def perplexity(nats: float, error: float) -> Estimate:
    """Of 6,000 sentences with 61,234 tokens."""
    return Estimate(math.exp(nats * 6000 / 61_234), error)


COLLAPSED = Results(
    split="test",
    scores=Scores(
        sentences=6000,
        tokens=61_234,
        re=Estimate(33.111, 0.112),
        kl=Estimate(0.013, 0.014),
        neg_elbo=Estimate(33.124, 0.115),
        elbo_ppl=perplexity(33.124, 0.316),
        active_units=0,
        mutual_information=Estimate(0.017, 0.018),
        kl_per_dimension=(0.013, 0.0),
        seed=3,
        importance_samples=500,
        nll=Estimate(33.119, 0.121),
        ppl=perplexity(33.119, 0.323),
        effective_samples=498.7,
        nll_excess=Estimate(-0.005, 0.001),
    ),
    floor=Floor(Estimate(20.125, 0.126), Estimate(7.127, 0.128)),
    stages=(StageEnd("train", 31, True, 24),),
    vocabulary="0123456789abcdef",
    vocabulary_size=411,
    data="fedcba9876543210",
    world_size=2,
)
CURED = replace(
    COLLAPSED,
    scores=replace(
        COLLAPSED.scores,
        re=Estimate(27.331, 0.132),
        kl=Estimate(4.133, 0.034),
        neg_elbo=Estimate(31.464, 0.135),
        elbo_ppl=perplexity(31.464, 0.337),
        active_units=2,
        mutual_information=Estimate(4.038, 0.039),
        kl_per_dimension=(2.1, 2.033),
        nll=Estimate(30.441, 0.142),
        ppl=perplexity(30.441, 0.344),
    ),
    stages=(StageEnd("pretrain", 12, True, 9), StageEnd("train", 40, True, 33)),
)
WITHOUT_NLL = replace(
    COLLAPSED.scores, importance_samples=0, nll=None, ppl=None, effective_samples=None, nll_excess=None
)
BOTH = {"kla": COLLAPSED, "pt_kla_sfb": CURED}
