"""The KL term of the ELBO."""

from __future__ import annotations

import torch
from torch import Tensor


def kl_per_dimension(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(μ, σ²) ‖ N(0, 1)) of each dimension in nats: [b, m] → [b, m], in float32 or better."""
    if mean.dtype in (torch.bfloat16, torch.float16):
        mean, log_variance = mean.float(), log_variance.float()
    # expm1 keeps the digits that σ² − 1 would lose where σ² is near 1.
    return 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance)
