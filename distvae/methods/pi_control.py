"""PI-controlled KL (Shao et al., 2020, «ControlVAE: Controllable Variational Autoencoder»)."""

from __future__ import annotations

from dataclasses import dataclass as state
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from distvae.methods.policy import ENOUGH, Gamma, PolicyOptions
from distvae.system.roles import Role
from distvae.system.settings import RULES, NotNegative

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, config=RULES)
class PIControl(PolicyOptions):
    """γ(t) = K_p / (1 + exp(e(t))) − K_i Σ e(j), between 0 and 1, where e(t) = λ − KL of the batch of step t.

    The defaults are those of the authors' language models.
    """

    name: Literal["pi_control"] = "pi_control"
    # Target λ of the KL, in nats per sentence.
    target_rate: Annotated[NotNegative, Role.MUTABLE] = 4.0
    # K_p.
    proportional: Annotated[NotNegative, Role.MUTABLE] = 0.01
    # K_i.
    integral: Annotated[NotNegative, Role.MUTABLE] = 0.0001

    label: ClassVar[str] = "PI"
    needs_step_kl: ClassVar[bool] = True

    @property
    def rate(self) -> float:
        return self.target_rate

    def start(self, weight: Tensor) -> Controlled:
        return Controlled(weight, self, weight.new_zeros(()))


@state
class Controlled(Gamma):
    """γ of a PI controller, after every step.

    The integral stays between 0 and 1, so that it leaves a bound of γ as soon as the error changes its sign.
    """

    weight: Tensor
    options: PIControl
    integral: Tensor  # −K_i Σ e(j), a float64 scalar on the device
    epochs: int = 0  # that have ended

    def return_to(self, weight: float) -> None:
        self.value = weight
        self.integral.fill_(weight)

    def end_step(self, kl: Tensor) -> None:
        error = self.options.target_rate - kl.double()
        made = error.isfinite()
        integral = (self.integral - self.options.integral * error).clamp(0.0, 1.0)
        weight = (self.options.proportional * (-error).sigmoid() + integral).clamp(max=1.0)
        self.integral.copy_(integral.where(made, self.integral))
        self.weight.copy_(weight.where(made, self.weight))

    def may_be_best(self, valid_kl: float) -> bool:
        return valid_kl >= ENOUGH * self.options.target_rate

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "integral": self.integral.item()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.integral.fill_(state["integral"])
