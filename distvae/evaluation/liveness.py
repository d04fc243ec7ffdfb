"""Judge whether a latent variable is alive by its mutual information and KL, and advise what to do if it is not.

A KL near its target does not make a latent alive, and neither do active units: a posterior can be far from the prior,
and the same for every sentence. The mutual information of sentence and latent decides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from distvae.config.schema import Config
from distvae.methods.policy import LatentState

# Below this mutual information, in nats per sentence, a latent is dead.
DEAD = 0.3
# The share of the KL, and of λ, that has to be information.
INFORMATIVE = 0.5

# Warn after this many consecutive epochs without a live latent. The first epochs of a stage may well have none.
_LASTING = 3


@dataclass(frozen=True)
class Latent:
    """The state of a latent, and what to do about it."""

    state: LatentState
    advice: str | None = None  # None: the latent is alive


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
    """Return the mutual information below which a latent is in each state, the worst state first."""
    most = math.log(sentences)
    asked = most if target_rate is None else min(most, target_rate)
    return {
        "dead": min(DEAD, INFORMATIVE * asked),
        "hollow": INFORMATIVE * min(kl, most),
        "weak": 0.0 if target_rate is None else INFORMATIVE * asked,
    }


def judge(kl: float, mutual_information: float, sentences: int, config: Config, stage: str) -> Latent | None:
    """Judge the latent of a run, and advise.

    Args:
        kl, mutual_information, sentences: as for ``latent_state``.
        config: the config of the run.
        stage: the stage that trained the weights, ``pretrain`` or ``train``.

    Returns:
        The state and advice; None where there is nothing to judge: in a language model, or by a single sentence.
    """
    if config.language_model:
        return None
    rate = config.kl.rate if stage == "train" else None
    state = latent_state(kl, mutual_information, sentences, rate)
    if state in (None, "alive"):
        return None if state is None else Latent(state)
    figures = f"mutual information {round(mutual_information, 2) + 0.0:.2f} of a KL of {kl:.2f} nats"
    meaning = {
        "dead": "the decoder ignores z",
        "hollow": "z hardly depends on the sentence",
        "weak": f"less than half of λ = {rate or 0:g}",
    }[state]
    return Latent(state, f"{figures}: {meaning}. Try {'; '.join(_remedies(state, config, stage))}")


def _remedies(state: LatentState, config: Config, stage: str) -> list[str]:
    """Return what to try, the most promising first."""
    slower = f"an optimizer.learning_rate below {config.optimizer.learning_rate:g}"
    weaker = f"a model.word_dropout above {config.model.word_dropout:g}, which weakens the decoder"
    if stage == "pretrain" or config.kl.policy.autoencoder:
        return [slower, weaker]
    found = list(config.kl.policy.remedies)
    if config.kl.policy.needs_pretraining and config.pretrained is None and config.pretrain.max_epochs == 0:
        found.append("pretraining of the encoder (pretrain.max_epochs)")
    if config.kl.rate is not None:
        found.append(f"more epochs than train.max_epochs={config.train.max_epochs}")
    if state != "weak":
        found += [slower, weaker]
    return found


class LatentWatch:
    """Follows the state of the latent from epoch to epoch.

    Attributes:
        state: of the last epoch; None: there is none, or it could not be judged.
        lifeless: number of consecutive epochs, up to the last of the stage, without a live latent.
    """

    def __init__(self) -> None:
        self.state: LatentState | None = None
        self.lifeless = 0

    def follow(self, epoch: int, state: LatentState | None) -> None:
        """Take in the next epoch, counted from 1 within its stage."""
        self.state = state
        self.lifeless = 0 if state in (None, "alive") else 1 if epoch == 1 else self.lifeless + 1

    @property
    def warns(self) -> bool:
        """Whether to warn now: once when a lifeless latent has lasted, and again after it was alive."""
        return self.lifeless == _LASTING
