"""Soft free bits: γ is steered so that the KL stays near a target (paper, section 6.1, Algorithm 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass as state
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from distvae.methods.annealing import AnnealBy, annealed
from distvae.methods.policy import Gamma, LatentState, PolicyOptions
from distvae.system.roles import Role
from distvae.system.settings import RULES, Count, NotNegative, OpenUnit, Positive, Probability

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, config=RULES)
class Band(PolicyOptions):
    """Options of a policy that keeps the KL in the band (1 ± β)λ."""

    # Target λ of the KL, in nats per sentence.
    target_rate: Annotated[NotNegative, Role.MUTABLE] = 4.0
    # β: γ stays as it is while the KL is within (1 ± β)λ.
    threshold: Annotated[Probability, Role.MUTABLE] = 0.05
    # χ: γ is multiplied by 1 + χ or 1 − χ.
    multiplier: Annotated[OpenUnit, Role.MUTABLE] = 0.1

    @property
    def rate(self) -> float:
        return self.target_rate

    @property
    def floor(self) -> float:
        """The lower end of the band, in nats per sentence."""
        return (1 - self.threshold) * self.target_rate

    @property
    def ceiling(self) -> float:
        """The upper end of the band, in nats per sentence."""
        return (1 + self.threshold) * self.target_rate


@dataclass(frozen=True, config=RULES)
class SoftFreeBits(Band):
    """Soft free bits, which begin after linear annealing (paper, Algorithm 1; Chen et al., 2016)."""

    name: Literal["soft_free_bits"] = "soft_free_bits"
    # Epochs n in which γ rises to 1, before soft free bits begin.
    anneal_epochs: Count = 10
    # Whether γ rises before each epoch, by 1/n of its end, or before each step, evenly from 0.
    anneal_by: AnnealBy = "epoch"
    # γ moves every so many steps of an epoch, by the KL since the last time. Null: once an epoch.
    every_steps: Positive | None = None

    label: ClassVar[str] = "SFB"

    @property
    def warm_up(self) -> int:
        return self.anneal_epochs

    @property
    def interval(self) -> int | None:
        return self.every_steps

    def start(self, weight: Tensor) -> AnnealedThenSteered:
        return AnnealedThenSteered(weight, self)


@state
class Steered(Gamma):
    """γ that keeps the KL in the band (1 ± β)λ.

    A KL above the band raises γ to min(γ(1 + χ), 1), a KL below it lowers γ to γ(1 − χ), and a KL within leaves it.
    −ELBO prefers collapse: weights may be the best only after a training KL has been in the band (or above it at
    γ = 1), and never while their own validation KL is below it.
    """

    weight: Tensor
    options: Band
    epochs: int = 0  # that have ended
    in_band: bool = False  # a KL that γ was moved by has been in the band

    def move(self, kl: float) -> None:
        """Move γ by a mean KL in nats per sentence."""
        options = self.options
        if kl > options.ceiling:
            # At γ = 1 nothing is left to do against a KL above the band, which is no collapse.
            self.in_band |= self.value == 1.0
            self.value = min(self.value * (1 + options.multiplier), 1.0)
        elif kl < options.floor:
            self.value *= 1 - options.multiplier
        elif not math.isnan(kl):
            self.in_band = True

    def may_be_best(self, valid_kl: float) -> bool:
        return self.in_band and valid_kl >= self.options.floor

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "in_band": self.in_band}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.in_band = state["in_band"]


@state
class AnnealedThenSteered(Steered):
    """γ of soft free bits: linear annealing, and then the rule."""

    options: SoftFreeBits

    def __post_init__(self) -> None:
        self._anneal(0.0)

    def start_step(self, epoch_share: float) -> None:
        if self.options.anneal_by == "step" and self.epochs < self.options.anneal_epochs:
            self._anneal(epoch_share)

    def end_interval(self, kl: float) -> None:
        if self.epochs >= self.options.anneal_epochs:
            self.move(kl)

    def end_epoch(self, kl: float, latent: LatentState | None = None) -> None:
        super().end_epoch(kl, latent)
        if self.epochs < self.options.anneal_epochs:
            self._anneal(0.0)
            return
        if self.epochs == self.options.anneal_epochs:
            self.value = 1.0
        if self.options.every_steps is None:
            self.move(kl)

    def _anneal(self, epoch_share: float) -> None:
        options = self.options
        self.value = annealed(self.epochs, options.anneal_epochs, options.anneal_by, epoch_share)

    def may_be_best(self, valid_kl: float) -> bool:
        return self.epochs > self.options.anneal_epochs and super().may_be_best(valid_kl)
