"""A constant γ, and linear KL annealing (Bowman et al., 2015)."""

from __future__ import annotations

from dataclasses import dataclass as state
from typing import TYPE_CHECKING, Literal

from pydantic.dataclasses import dataclass

from distvae.methods.policy import Gamma, LatentState, PolicyOptions
from distvae.system.settings import RULES, Count, NotNegative

if TYPE_CHECKING:
    from torch import Tensor


AnnealBy = Literal["epoch", "step"]


def annealed(epochs: int, anneal_epochs: int, by: AnnealBy = "epoch", epoch_share: float = 0.0) -> float:
    """Return the share of its end that γ has reached n = ``anneal_epochs`` epochs being the way.

    By epoch: 1/n, 2/n, …, 1. By step: from 0, evenly, to 1 after n epochs.

    Args:
        epochs: that have ended.
        epoch_share: how much of the next one has been trained, in [0, 1).
    """
    reached = epochs + (1 if by == "epoch" else epoch_share)
    return min(reached / anneal_epochs, 1.0) if anneal_epochs else 1.0


@dataclass(frozen=True, config=RULES)
class Constant(PolicyOptions):
    """γ is always ``weight``: 1 is the ELBO, another value a β-VAE (Higgins et al., 2017), 0 an autoencoder."""

    name: Literal["constant"] = "constant"
    # γ.
    weight: NotNegative = 1.0

    @property
    def autoencoder(self) -> bool:
        return self.weight == 0

    def start(self, weight: Tensor) -> Annealing:
        return Annealing(weight, self.weight)


@dataclass(frozen=True, config=RULES)
class Linear(PolicyOptions):
    """γ rises to ``weight`` in the first n = ``anneal_epochs`` epochs (Bowman et al., 2015)."""

    name: Literal["linear"] = "linear"
    # Where γ ends.
    weight: NotNegative = 1.0
    # Epochs n in which γ rises to its end.
    anneal_epochs: Count = 10
    # Whether γ rises before each epoch, by 1/n of its end, or before each step, evenly from 0.
    anneal_by: AnnealBy = "epoch"

    @property
    def warm_up(self) -> int:
        return self.anneal_epochs

    @property
    def autoencoder(self) -> bool:
        return self.weight == 0

    def start(self, weight: Tensor) -> Annealing:
        return Annealing(weight, self.weight, self.anneal_epochs, self.anneal_by)


@state
class Annealing(Gamma):
    """γ rises to its end in the first n epochs and stays there. n = 0: a constant."""

    weight: Tensor
    end: float
    anneal_epochs: int = 0
    by: AnnealBy = "epoch"
    epochs: int = 0  # that have ended

    def __post_init__(self) -> None:
        self._anneal(0.0)

    def start_step(self, epoch_share: float) -> None:
        if self.by == "step" and self.epochs < self.anneal_epochs:
            self._anneal(epoch_share)

    def end_epoch(self, kl: float, latent: LatentState | None = None) -> None:
        super().end_epoch(kl, latent)
        self._anneal(0.0)

    def _anneal(self, epoch_share: float) -> None:
        self.value = self.end * annealed(self.epochs, self.anneal_epochs, self.by, epoch_share)

    def may_be_best(self, valid_kl: float) -> bool:
        return self.epochs > self.anneal_epochs
