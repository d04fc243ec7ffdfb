"""Cyclical annealing (Fu et al., 2019, «Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing»)."""

from __future__ import annotations

from dataclasses import dataclass as state
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from distvae.methods.policy import Gamma, PolicyOptions
from distvae.system.settings import RULES, NotNegative, Positive

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, config=RULES)
class Cyclical(PolicyOptions):
    """In each cycle γ rises linearly from 0, step by step, and then stays at ``weight`` (Fu et al., 2019, eq. 6–7).

    After the last cycle γ stays at ``weight``.
    """

    name: Literal["cyclical"] = "cyclical"
    # Where γ ends in each cycle.
    weight: NotNegative = 1.0
    # M: how often γ rises.
    cycles: Positive = 4
    # Epochs of a cycle.
    cycle_epochs: Positive = 10
    # R: share of a cycle in which γ rises.
    ramp: Annotated[float, Field(gt=0, le=1)] = 0.5

    warm_up_label: ClassVar[str] = "cyclical KLA"

    @property
    def warm_up(self) -> int:
        return self.cycles * self.cycle_epochs

    @property
    def autoencoder(self) -> bool:
        return self.weight == 0

    def start(self, weight: Tensor) -> Cycles:
        return Cycles(weight, self)


@state
class Cycles(Gamma):
    """γ of cyclical annealing. It depends on how far the stage is, and on nothing that is measured."""

    weight: Tensor
    options: Cyclical
    epochs: int = 0  # that have ended

    def start_step(self, epoch_share: float) -> None:
        options = self.options
        if self.epochs >= options.warm_up:
            self.value = options.weight
            return
        # τ of the paper: how far the cycle is, in [0, 1).
        position = (self.epochs % options.cycle_epochs + epoch_share) / options.cycle_epochs
        self.value = options.weight * min(position / options.ramp, 1.0)

    def may_be_best(self, valid_kl: float) -> bool:
        return self.epochs > self.options.warm_up
