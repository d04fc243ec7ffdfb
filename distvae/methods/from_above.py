"""Soft free bits that approach the target from above, which need neither pretraining nor annealing."""

from __future__ import annotations

from dataclasses import dataclass as state
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from distvae.methods.policy import LatentState
from distvae.methods.soft_free_bits import Band, Steered
from distvae.system.settings import RULES

if TYPE_CHECKING:
    from torch import Tensor

# γ at first: low enough for z to become useful, high enough to keep the posterior from drifting away from the prior.
START = 0.1
# Steps between two moves of γ.
STEPS = 40
# As low as a latent that holds nothing brings γ.
LEAST = 0.01


@dataclass(frozen=True, config=RULES)
class FromAbove(Band):
    """γ starts at 0.1. The KL soon exceeds λ, and every 40 steps γ moves by the rule of soft free bits.

    The decoder therefore never trains without a z that is worth using, as it does while annealing raises γ to 1.
    """

    name: Literal["from_above"] = "from_above"

    label: ClassVar[str] = "SFB from above"
    needs_pretraining: ClassVar[bool] = False

    @property
    def interval(self) -> int:
        return STEPS

    @property
    def remedies(self) -> list[str]:
        return []

    def start(self, weight: Tensor) -> Approach:
        return Approach(weight, self)


@state
class Approach(Steered):
    """γ of soft free bits from above.

    The KL has to exceed its band before it can arrive there. The KL of a dead or hollow latent, which sentences share,
    is no reason to raise γ: until z tells sentences apart, γ falls to 0.01. Weights of such a latent cannot be the
    best, because −ELBO stands still while z is still learning, and the plateau rule would end that.
    """

    above: bool = False  # a KL has been above the band
    latent: LatentState | None = None  # in the last validation

    def __post_init__(self) -> None:
        self.value = START

    def end_interval(self, kl: float) -> None:
        if self.latent in ("dead", "hollow"):
            if self.value > LEAST:
                self.value *= 1 - self.options.multiplier
            return
        self.above |= kl > self.options.ceiling
        self.move(kl)
        self.in_band &= self.above

    def end_epoch(self, kl: float, latent: LatentState | None = None) -> None:
        super().end_epoch(kl, latent)
        self.latent = latent

    def may_be_best(self, valid_kl: float) -> bool:
        return self.latent not in ("dead", "hollow") and super().may_be_best(valid_kl)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "above": self.above, "latent": self.latent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.above, self.latent = state["above"], state["latent"]
