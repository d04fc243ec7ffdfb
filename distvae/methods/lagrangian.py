"""The Lagrangian minimum desired rate (Pelsmaeker & Aziz, 2019, «Effective Estimation of Deep Generative Language
Models»)."""

from __future__ import annotations

from dataclasses import dataclass as state
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from distvae.methods.policy import ENOUGH, Gamma, PolicyOptions
from distvae.system.roles import Role
from distvae.system.settings import RULES, AboveZero, NotNegative

if TYPE_CHECKING:
    from torch import Tensor

# As in the authors' program: where the multiplier starts, and RMSProp's decay and ε.
START, DECAY, EPSILON = 1.01, 0.99, 1e-8


@dataclass(frozen=True, config=RULES)
class Lagrangian(PolicyOptions):
    """−ELBO subject to KL ≥ λ: its Lagrangian is RE + KL + u(λ − KL), whose gradient is that of γ = 1 − u.

    The multiplier u ≥ 0 rises while the batch's KL is below λ, and falls while it is above. γ is negative while u > 1.
    """

    name: Literal["lagrangian"] = "lagrangian"
    # Minimum λ of the KL, in nats per sentence.
    target_rate: Annotated[NotNegative, Role.MUTABLE] = 4.0
    # Step size of RMSProp on the multiplier.
    dual_learning_rate: Annotated[AboveZero, Role.MUTABLE] = 0.001

    label: ClassVar[str] = "MDR"
    needs_step_kl: ClassVar[bool] = True

    @property
    def rate(self) -> float:
        return self.target_rate

    def start(self, weight: Tensor) -> Multiplier:
        return Multiplier(weight, self, weight.new_zeros(()))


@state
class Multiplier(Gamma):
    """γ = 1 − u, by gradient ascent on u after every step."""

    weight: Tensor
    options: Lagrangian
    square: Tensor  # running mean of the squared gradient of u, a float64 scalar on the device
    epochs: int = 0  # that have ended

    def __post_init__(self) -> None:
        self.value = 1 - START

    def end_step(self, kl: Tensor) -> None:
        gradient = self.options.target_rate - kl.double()
        square = DECAY * self.square + (1 - DECAY) * gradient.square()
        change = self.options.dual_learning_rate * gradient / (square.sqrt() + EPSILON)
        made = gradient.isfinite()
        self.square.copy_(square.where(made, self.square))
        self.weight.copy_((self.weight - change).clamp(max=1.0).where(made, self.weight))

    def may_be_best(self, valid_kl: float) -> bool:
        return valid_kl >= ENOUGH * self.options.target_rate

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "square": self.square.item()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.square.fill_(state["square"])
