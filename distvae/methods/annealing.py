"""A constant γ, and linear KL annealing (Bowman et al., 2015)."""

from __future__ import annotations

from dataclasses import dataclass as state
from typing import TYPE_CHECKING, Literal

from pydantic.dataclasses import dataclass

from distvae.methods.policy import Gamma, PolicyOptions
from distvae.system.settings import RULES, Count, NotNegative

if TYPE_CHECKING:
    from torch import Tensor


def annealed(epochs: int, anneal_epochs: int) -> float:
    """Return the share of γ's end in the epoch after ``epochs`` epochs: 1/n, 2/n, …, 1."""
    return min((epochs + 1) / anneal_epochs, 1.0) if anneal_epochs else 1.0


@dataclass(frozen=True, config=RULES)
class Constant(PolicyOptions):
    """γ is always ``weight``: 1 is the ELBO, another value a β-VAE (Higgins et al., 2017), 0 an autoencoder."""

    name: Literal["constant"] = "constant"
    # γ of `constant`, and where `linear` and `cyclical` end.
    weight: NotNegative = 1.0

    @property
    def autoencoder(self) -> bool:
        return self.weight == 0

    def start(self, weight: Tensor) -> Annealing:
        return Annealing(weight, self.weight)


@dataclass(frozen=True, config=RULES)
class Linear(PolicyOptions):
    """γ rises by ``weight``/n in each of the first n = ``anneal_epochs`` epochs (Bowman et al., 2015)."""

    name: Literal["linear"] = "linear"
    weight: NotNegative = 1.0
    # `linear` and `soft_free_bits` raise γ by 1/n of its end in each of the first n epochs.
    anneal_epochs: Count = 10

    @property
    def warm_up(self) -> int:
        return self.anneal_epochs

    @property
    def autoencoder(self) -> bool:
        return self.weight == 0

    def start(self, weight: Tensor) -> Annealing:
        return Annealing(weight, self.weight, self.anneal_epochs)


@state
class Annealing(Gamma):
    """γ = i/n of its end in epoch i of the first n, then its end. n = 0: a constant."""

    weight: Tensor
    end: float
    anneal_epochs: int = 0
    epochs: int = 0  # that have ended

    def __post_init__(self) -> None:
        self.value = self.end * annealed(self.epochs, self.anneal_epochs)

    def end_epoch(self, kl: float) -> None:
        self.epochs += 1
        self.value = self.end * annealed(self.epochs, self.anneal_epochs)

    def may_be_best(self, valid_kl: float) -> bool:
        return self.epochs > self.anneal_epochs
