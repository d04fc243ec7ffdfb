"""Whether a latent variable is alive: what its mutual information says beside its KL.

A KL near its target does not make a latent alive, and neither do active units: a posterior can be far from the prior
and the same for every sentence. The mutual information of sentence and latent decides.
"""

from __future__ import annotations

import math
from typing import Literal

# `dead`: the latent tells sentences apart by next to nothing. `hollow`: most of the KL is spent on a posterior that
# hardly depends on the sentence. `weak`: less than half of the information that a target rate λ asks for.
LatentState = Literal["alive", "weak", "hollow", "dead"]

# Below this mutual information, in nats per sentence, a latent is dead.
DEAD = 0.1
# The share of the KL, and of λ, that has to be information.
INFORMATIVE = 0.5


def latent_state(
    kl: float, mutual_information: float, sentences: int, target_rate: float | None = None
) -> LatentState | None:
    """Judge a latent by its scores over a split.

    Args:
        kl: mean KL, in nats per sentence.
        mutual_information: estimate of I(x; z), in nats; it cannot exceed ln(``sentences``).
        sentences: number of sentences that were scored.
        target_rate: λ, in nats per sentence, where the method has one.

    Returns:
        The state; None where a single sentence was scored, which has no mutual information.
    """
    if sentences == 1:
        return None
    for state, needed in _needed(kl, sentences, target_rate).items():
        if mutual_information < needed:
            return state
    return "alive"


def missing_information(
    kl: float, mutual_information: float, sentences: int, target_rate: float | None = None
) -> float:
    """Return the nats of mutual information that a latent lacks to be alive: above 0 where it is not.

    The arguments are those of ``latent_state``.
    """
    return max(0.0, max(_needed(kl, sentences, target_rate).values()) - mutual_information)


def _needed(kl: float, sentences: int, target_rate: float | None) -> dict[LatentState, float]:
    """The mutual information below which a latent is in a state, the worst state first."""
    most = math.log(sentences)
    return {
        "dead": min(DEAD, INFORMATIVE * most),
        "hollow": INFORMATIVE * min(kl, most),
        "weak": INFORMATIVE * min(target_rate or 0.0, most),
    }
