"""Approximate posteriors q(z|x)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Posterior(NamedTuple):
    """The Gaussian q(z|x) = N(mean, diag exp log_variance), each [b, m], in float32 or better."""

    mean: Tensor
    log_variance: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return z = μ + σ ⊙ ε for standard normal ε [b, m]."""
        return self.mean + torch.exp(0.5 * self.log_variance) * noise
