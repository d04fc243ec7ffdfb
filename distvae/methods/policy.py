"""The interface of a γ policy: what training asks of it, and what a config declares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:  # a config needs the options alone, and PyTorch takes a second to import
    from torch import Tensor

# `dead`: the latent hardly distinguishes sentences. `hollow`: most of the KL is spent on a posterior that hardly
# depends on the sentence. `weak`: less than half of the information that a target rate λ asks for.
LatentState = Literal["alive", "weak", "hollow", "dead"]

# Of λ: the least validation KL of weights that may be the best, under a policy that holds the KL at λ at every step.
ENOUGH = 0.95


class Gamma(ABC):
    """γ during a stage. Every rank holds one; all see the same reduced KL, so all hold the same γ.

    A policy overrides what it reacts to, and adds to the state what it keeps beside these two.
    """

    weight: Tensor  # γ, a float64 scalar on the device, which training steps read there
    epochs: int  # that have ended

    @property
    def value(self) -> float:
        """γ as a number. Waits for the device."""
        return self.weight.item()

    @value.setter
    def value(self, value: float) -> None:
        self.weight.fill_(value)

    def return_to(self, weight: float) -> None:
        """Called where the best weights come back, with the γ that they were trained with."""
        self.value = weight

    def start_step(self, epoch_share: float) -> None:  # noqa: B027
        """Called before a step, with the share of the epoch's batches already trained, in [0, 1)."""

    def end_step(self, kl: Tensor) -> None:  # noqa: B027
        """Called after a step if ``needs_step_kl``, with the global batch's mean KL in nats per sentence.

        Args:
            kl: scalar on the device, which must not be waited for; NaN if the step was skipped.
        """

    def end_interval(self, kl: float) -> None:  # noqa: B027
        """Called every ``interval`` steps, with the mean KL over all ranks since then, in nats per sentence."""

    def end_epoch(self, kl: float, latent: LatentState | None = None) -> None:
        """Called after an epoch and its validation. Counts it.

        Args:
            kl: mean training KL over all ranks, in nats per sentence.
            latent: the state of the latent in validation; None: there is nothing to judge.
        """
        self.epochs += 1

    @abstractmethod
    def may_be_best(self, valid_kl: float) -> bool:
        """Return whether the weights of the last epoch may become the best, given their validation KL in nats per
        sentence."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: JSON values."""
        return {"weight": self.value, "epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a ``state_dict``."""
        self.value, self.epochs = state["weight"], state["epochs"]


class PolicyOptions(ABC):
    """Options of a policy, as a frozen dataclass. Its fields are keys of the config's ``kl`` section.

    A policy overrides what differs from a constant γ.
    """

    label: ClassVar[str] = ""  # in tables, beside PT, KLA and FB; empty: none
    warm_up_label: ClassVar[str] = "KLA"  # in tables, where ``warm_up`` is not 0
    needs_pretraining: ClassVar[bool] = True  # whether a latent that is not alive may lack a pretrained encoder
    needs_step_kl: ClassVar[bool] = False  # whether ``end_step`` is called

    @property
    def warm_up(self) -> int:
        """Epochs whose weights cannot be the best, because γ has not reached its end."""
        return 0

    @property
    def rate(self) -> float | None:
        """λ, the KL that the policy aims at, in nats per sentence; None: it has no target."""
        return None

    @property
    def autoencoder(self) -> bool:
        """Whether γ is always 0."""
        return False

    @property
    def interval(self) -> int | None:
        """Steps between two calls of ``end_interval``; None: it is not called."""
        return None

    @property
    def remedies(self) -> list[str]:
        """What to try first where the latent is not alive, in a few words each."""
        return ["kl.policy=from_above, which keeps the KL at kl.target_rate"]

    @abstractmethod
    def start(self, weight: Tensor) -> Gamma:
        """Return the γ of a stage before its first step.

        Args:
            weight: a float64 scalar on the device, which is to hold γ.
        """
