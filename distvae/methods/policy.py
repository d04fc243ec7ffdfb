"""The interface of a γ policy: what the trainer asks of it, and what a config declares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol


class Gamma(ABC):
    """γ during a stage. Every rank holds one; all see the same reduced KL, so all hold the same γ.

    A policy overrides what it reacts to, and adds to the state what it keeps beside these two.
    """

    weight: float
    epochs: int  # that have ended

    def start_step(self, epoch_share: float) -> None:  # noqa: B027
        """Called before a step, with the share of the epoch's batches already trained, in [0, 1)."""

    def end_interval(self, kl: float) -> None:  # noqa: B027
        """Called every ``every_steps`` steps, with the mean KL over all ranks since the last call, in nats per
        sentence."""

    @abstractmethod
    def end_epoch(self, kl: float) -> None:
        """Called after an epoch, with its mean training KL over all ranks, in nats per sentence."""

    @abstractmethod
    def may_be_best(self, valid_kl: float) -> bool:
        """Return whether the weights of the last epoch may become the best, given their validation KL in nats per
        sentence."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {"weight": self.weight, "epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a ``state_dict``."""
        self.weight, self.epochs = state["weight"], state["epochs"]


class PolicyOptions(Protocol):
    """Options of a policy, as a frozen dataclass. Fields are keys of the config's ``kl`` section."""

    name: ClassVar[str]  # value of ``kl.policy``
    label: ClassVar[str]  # in tables, beside PT, KLA and FB; empty: none
    warm_up_label: ClassVar[str]  # in tables, where ``warm_up`` is not 0

    @property
    def warm_up(self) -> int:
        """Epochs whose weights cannot be the best, because γ has not reached its end."""

    @property
    def rate(self) -> float | None:
        """λ, the KL that the policy aims at, in nats per sentence; None: it has no target."""

    @property
    def autoencoder(self) -> bool:
        """Whether γ is always 0."""

    @property
    def interval(self) -> int | None:
        """Steps between two calls of ``end_interval``; None: it is not called."""

    def start(self) -> Gamma:
        """Return the γ of a stage before its first step."""
