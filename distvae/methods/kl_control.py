"""Who sets γ, the weight of the KL term. A policy sees the mean KL over all ranks, and nothing else.

A new policy is a class with the members of ``KLPolicy`` and a line in ``POLICIES``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from distvae.config.schema import KLConfig


class KLPolicy(Protocol):
    """γ now, and how it moves. Every rank holds one, and all see the same numbers."""

    weight: float

    def end_interval(self, kl: float) -> None:
        """After every ``every_steps`` steps: the mean KL since the last call, in nats a sentence."""

    def end_epoch(self, kl: float) -> None:
        """After an epoch: its mean training KL, in nats a sentence."""

    def may_be_best(self, valid_kl: float) -> bool:
        """Whether the weights of the epoch that has just ended may be taken as the best, given their validation KL."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Linear:
    """γ = i/n of its end in epoch i of the first n, then its end for good (Bowman et al., 2015). n = 0: a constant."""

    end: float
    anneal_epochs: int = 0
    epochs: int = 0  # that have ended
    weight: float = field(init=False)

    def __post_init__(self):
        self.weight = self.end * _annealed(self.epochs, self.anneal_epochs)

    def end_interval(self, kl: float) -> None:
        pass

    def end_epoch(self, kl: float) -> None:
        self.epochs += 1
        self.weight = self.end * _annealed(self.epochs, self.anneal_epochs)

    def may_be_best(self, valid_kl: float) -> bool:
        return self.epochs > self.anneal_epochs

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight, "epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight, self.epochs = state["weight"], state["epochs"]


@dataclass
class SoftFreeBits:
    """Soft free bits after linear annealing (paper, Algorithm 1; Chen et al., 2016).

    Once annealing has ended, KL > (1 + β)λ raises γ to min(γ(1 + χ), 1), KL < (1 − β)λ lowers it to γ(1 − χ), and a KL
    in between leaves it. −ELBO prefers collapse: weights may be the best only once a training KL has come into that
    band (or stands above it at γ = 1), and never while their own validation KL is under it.
    """

    target_rate: float
    threshold: float
    multiplier: float
    anneal_epochs: int
    every_steps: int | None = None
    epochs: int = 0  # that have ended
    in_band: bool = False  # a KL has been within (1 ± β)λ since annealing ended
    weight: float = field(init=False)

    def __post_init__(self):
        self.weight = _annealed(self.epochs, self.anneal_epochs)

    def end_interval(self, kl: float) -> None:
        if self.epochs >= self.anneal_epochs:
            self._move(kl)

    def end_epoch(self, kl: float) -> None:
        self.epochs += 1
        if self.epochs < self.anneal_epochs:
            self.weight = _annealed(self.epochs, self.anneal_epochs)
        elif self.every_steps is None:
            self._move(kl)

    def may_be_best(self, valid_kl: float) -> bool:
        return self.epochs > self.anneal_epochs and self.in_band and valid_kl >= (1 - self.threshold) * self.target_rate

    def state_dict(self) -> dict[str, Any]:
        return {"weight": self.weight, "epochs": self.epochs, "in_band": self.in_band}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weight, self.epochs, self.in_band = state["weight"], state["epochs"], state["in_band"]

    def _move(self, kl: float) -> None:
        if kl > (1 + self.threshold) * self.target_rate:
            # At γ = 1 there is nothing left to do against a KL above the band, which is no collapse.
            self.in_band |= self.weight == 1.0
            self.weight = min(self.weight * (1 + self.multiplier), 1.0)
        elif kl < (1 - self.threshold) * self.target_rate:
            self.weight = self.weight * (1 - self.multiplier)
        elif not math.isnan(kl):
            self.in_band = True


def _annealed(epochs: int, anneal_epochs: int) -> float:
    """Share of the end weight in the epoch after ``epochs`` have ended."""
    return min((epochs + 1) / anneal_epochs, 1.0) if anneal_epochs else 1.0


POLICIES: dict[str, Callable[[KLConfig], KLPolicy]] = {
    "constant": lambda kl: Linear(kl.weight),
    "linear": lambda kl: Linear(kl.weight, kl.anneal_epochs),
    "soft_free_bits": lambda kl: SoftFreeBits(
        kl.target_rate, kl.threshold, kl.multiplier, kl.anneal_epochs, kl.every_steps
    ),
}
