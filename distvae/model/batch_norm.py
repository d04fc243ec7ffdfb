"""Batch normalisation of the posterior mean (BN-VAE, Zhu et al., 2020; DU-VAE, Shen et al., 2021).

Over the sentences of a global batch, the mean of dimension d of z has the average β_d and the standard deviation γ_d.
So the average KL is at least Σ_d (γ_d² + β_d²) / 2, as E[μ²] = γ² + β² and σ² − log σ² ≥ 1. β_d is learnt. γ_d is γ in
BN-VAE; in DU-VAE it is learnt too, and γ is the root mean square over dimensions. So Σ_d γ_d² = mγ² in both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Weight of a step's statistics in the running ones, as in the reference implementation.
MOMENTUM = 0.1

# Far below any variance, because shrinking a variance towards it would be a way to collapse: under the paper's initial
# weights the variances are about 1e-8, and torch's 1e-5 lets the KL start near 0 and stay there.
EPSILON = 1e-12


def _of_one_rank(sums: Tensor) -> Tensor:
    return sums


class BatchNorm(nn.Module):
    """Normalise each dimension over the global batch in training, and by running statistics in evaluation.

    A global batch of a single sentence has no variance: it is normalised by the running statistics, and leaves them as
    they are. Statistics are computed in float64.

    Args:
        size: m.
        scale: γ, the standard deviation of each dimension, or the root mean square of all if they are learnt.
        learnt: whether each dimension learns its own.
    """

    running_mean: Tensor
    running_variance: Tensor
    last: Tensor

    def __init__(self, size: int, scale: float, learnt: bool = False):
        super().__init__()
        self.scale = scale
        self.shift = nn.Parameter(torch.zeros(size))
        # γ_d up to a common factor.
        self.scales = nn.Parameter(torch.full((size,), scale)) if learnt else None
        self.register_buffer("running_mean", torch.zeros(size))
        self.register_buffer("running_variance", torch.ones(size))
        # Count, mean and variance of the last training forward. A CUDA graph writes them where it was recorded.
        self.register_buffer("last", torch.zeros(3, size, dtype=torch.float64), persistent=False)
        # Sums a tensor over the ranks that share their batches, with a gradient. Engines set it.
        self.sum_over_ranks: Callable[[Tensor], Tensor] = _of_one_rank

    def forward(self, mean: Tensor, count: int | None = None) -> Tensor:
        """Return the normalised mean [b, m].

        In training every rank calls it, also one without a sentence: one collective, and one in the backward.

        Args:
            mean: [b, m].
            count: number of sentences that count, the first ones; the others are normalised, too. None: all.
        """
        values = mean.double()
        center, variance = self.running_mean.double(), self.running_variance.double()
        if self.training:
            own = values[:count]
            sums = torch.stack([torch.full_like(center, len(own)), own.sum(0), own.square().sum(0)])
            total, first, second = self.sum_over_ranks(sums)
            batch_mean = first / total.clamp(min=1)
            # Rounding may leave a variance of 0 below 0.
            batch_variance = (second / total.clamp(min=1) - batch_mean.square()).clamp(min=0)
            self.last.copy_(torch.stack([total, batch_mean, batch_variance]).detach())
            center = torch.where(total > 1, batch_mean, center)
            variance = torch.where(total > 1, batch_variance, variance)
        normal = (values - center) * torch.rsqrt(variance + EPSILON)
        return (self._deviations() * normal + self.shift).to(mean.dtype)

    def _deviations(self) -> Tensor | float:
        """Return γ_d, [m], or γ if it is the same for all.

        The authors of DU-VAE rescale their weights in place. Here the gradient passes through the rescaling, which
        moves γ_d by the same to first order, and needs no write to a weight that an engine may have sharded.
        """
        if self.scales is None:
            return self.scale
        scales = self.scales.double()
        return self.scale * scales * torch.rsqrt(scales.square().mean())

    @torch.no_grad()
    def end_step(self, finite: Tensor) -> None:
        """Add the last forward's statistics to the running ones, unless the step was skipped.

        Args:
            finite: whether the step was made, a scalar on the device.
        """
        count, mean, variance = self.last
        counts = finite & (count > 1)
        variance = variance * count / (count - 1).clamp(min=1)  # unbiased
        for running, new in ((self.running_mean, mean), (self.running_variance, variance)):
            moved = torch.lerp(running.double(), new, MOMENTUM)
            running.copy_(torch.where(counts, moved, running))
