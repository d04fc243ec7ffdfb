"""The objective of a stage: RE and the KL of each dimension in; the loss, its measurements and a state out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from distvae.methods import FreeBits, Policy

# Measurements before the KL of each dimension: sentences, RE and the loss.
LEADING = 3
LOSS = 2


class Objective:
    """The mean over the global batch of RE + γ·KL̃, which every method minimises.

    Args:
        policy: options of what sets γ.
        free_bits: what replaces the KL term.
        device: of the training steps. γ is kept there, so no step waits for the host.
    """

    def __init__(self, policy: Policy, free_bits: FreeBits, device: torch.device):
        self.gamma = policy.start(torch.zeros((), dtype=torch.float64, device=device))
        self.needs_step_kl = policy.needs_step_kl  # whether γ reacts to the KL of every step
        self.needs_batch_mean = free_bits.needs_batch_mean  # whether ``loss`` needs the global batch's mean KL
        self._shares = free_bits.shares

    def loss(self, re: Tensor, kl: Tensor, batch_mean: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the loss of some sentences of a global batch, summed, and what is measured.

        Args:
            re: reconstruction error of each sentence in nats, [b].
            kl: KL of each sentence and dimension in nats, [b, m].
            batch_mean: mean of ``kl`` over the global batch, [m], where ``needs_batch_mean``.

        Returns:
            The loss in nats, a scalar, and the measurements without a gradient, [3 + m]: sentences, RE, the loss, and
            the KL of each dimension, each summed over the sentences.
        """
        loss = (re + self.gamma.weight * self._shares(kl, batch_mean)).sum()
        with torch.no_grad():
            return loss, torch.cat([torch.stack([torch.full_like(loss, len(re)), re.sum(), loss]), kl.sum(dim=0)])

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: JSON values."""
        return self.gamma.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a ``state_dict``."""
        self.gamma.load_state_dict(state)
