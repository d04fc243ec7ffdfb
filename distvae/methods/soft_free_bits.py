"""Soft free bits: γ is steered so that the KL stays near a target (paper, section 6.1, Algorithm 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass as state
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from distvae.methods.annealing import AnnealBy, annealed
from distvae.methods.policy import Gamma, PolicyOptions
from distvae.system.roles import Role
from distvae.system.settings import RULES, Count, NotNegative, OpenUnit, Positive, Probability

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, config=RULES)
class SoftFreeBits(PolicyOptions):
    """Options of soft free bits, which begin after linear annealing (paper, Algorithm 1; Chen et al., 2016)."""

    name: Literal["soft_free_bits"] = "soft_free_bits"
    anneal_epochs: Count = 10
    anneal_by: AnnealBy = "epoch"
    # λ in nats per sentence, of soft free bits and of free bits.
    target_rate: Annotated[NotNegative, Role.MUTABLE] = 4.0
    # β: γ stays as it is while the KL is within (1 ± β)λ.
    threshold: Annotated[Probability, Role.MUTABLE] = 0.05
    # χ: γ is multiplied by 1 + χ or 1 − χ.
    multiplier: Annotated[OpenUnit, Role.MUTABLE] = 0.1
    # γ moves every so many steps of an epoch, by the KL since the last time. Null: once an epoch.
    every_steps: Positive | None = None

    label: ClassVar[str] = "SFB"

    @property
    def warm_up(self) -> int:
        return self.anneal_epochs

    @property
    def rate(self) -> float:
        return self.target_rate

    @property
    def interval(self) -> int | None:
        return self.every_steps

    @property
    def remedies(self) -> list[str]:
        return ["kl.every_steps=40, which adapts γ within epochs"] if self.every_steps is None else []

    def start(self, weight: Tensor) -> Steered:
        return Steered(weight, self)


@state
class Steered(Gamma):
    """γ of soft free bits.

    Once annealing has ended, KL > (1 + β)λ raises γ to min(γ(1 + χ), 1), KL < (1 − β)λ lowers it to γ(1 − χ), and a KL
    between leaves it. −ELBO prefers collapse: weights may be the best only after a training KL has been in that band
    (or above it at γ = 1), and never while their own validation KL is below it.
    """

    weight: Tensor
    options: SoftFreeBits
    epochs: int = 0  # that have ended
    in_band: bool = False  # a KL has been within (1 ± β)λ since annealing ended

    def __post_init__(self) -> None:
        self._anneal(0.0)

    def start_step(self, epoch_share: float) -> None:
        if self.options.anneal_by == "step" and self.epochs < self.options.anneal_epochs:
            self._anneal(epoch_share)

    def end_interval(self, kl: float) -> None:
        if self.epochs >= self.options.anneal_epochs:
            self._move(kl)

    def end_epoch(self, kl: float) -> None:
        super().end_epoch(kl)
        if self.epochs < self.options.anneal_epochs:
            self._anneal(0.0)
            return
        if self.epochs == self.options.anneal_epochs:
            self.value = 1.0
        if self.options.every_steps is None:
            self._move(kl)

    def _anneal(self, epoch_share: float) -> None:
        options = self.options
        self.value = annealed(self.epochs, options.anneal_epochs, options.anneal_by, epoch_share)

    def may_be_best(self, valid_kl: float) -> bool:
        options = self.options
        low = (1 - options.threshold) * options.target_rate
        return self.epochs > options.anneal_epochs and self.in_band and valid_kl >= low

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "in_band": self.in_band}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.in_band = state["in_band"]

    def _move(self, kl: float) -> None:
        options = self.options
        if kl > (1 + options.threshold) * options.target_rate:
            # At γ = 1 nothing is left to do against a KL above the band, which is no collapse.
            self.in_band |= self.value == 1.0
            self.value = min(self.value * (1 + options.multiplier), 1.0)
        elif kl < (1 - options.threshold) * options.target_rate:
            self.value *= 1 - options.multiplier
        elif not math.isnan(kl):
            self.in_band = True
