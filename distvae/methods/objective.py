"""The training objective: RE + γ·KL̃ of a sentence, averaged over the global batch (paper, section 6.1).

KL̃ is the KL or what a free-bits form puts in its place. A form gives each sentence its *share*, such that the mean of
the shares over the global batch is the objective's KL term and their gradients are its gradient. Forms that bound the
mean over the batch take that mean as a constant, summed over all ranks beforehand, and gate each dimension by it: no
gradient passes through a collective.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def kl_per_dimension(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)) of each dimension in nats: [b, m] → [b, m], float32 or better."""
    if mean.dtype in (torch.bfloat16, torch.float16):
        mean, log_variance = mean.float(), log_variance.float()
    # expm1 keeps the digits that σ² − 1 would lose where σ² is near 1.
    return 0.5 * (mean.square() + torch.expm1(log_variance) - log_variance)


Shares = Callable[[Tensor, "Tensor | None", float], Tensor]


@dataclass(frozen=True)
class FreeBits:
    """A free-bits form: ``shares(kl [b, m], batch_mean [m] or None, λ) → [b]``; λ counts nats a sentence."""

    shares: Shares
    needs_batch_mean: bool = False


def _none(kl: Tensor, batch_mean: Tensor | None, target_rate: float) -> Tensor:
    return kl.sum(dim=1)


def _dimension(kl: Tensor, batch_mean: Tensor | None, target_rate: float) -> Tensor:
    floor = target_rate / kl.shape[1]
    return torch.where(batch_mean > floor, kl, floor).sum(dim=1)


def _sentence_dimension(kl: Tensor, batch_mean: Tensor | None, target_rate: float) -> Tensor:
    return kl.clamp(min=target_rate / kl.shape[1]).sum(dim=1)


def _sentence(kl: Tensor, batch_mean: Tensor | None, target_rate: float) -> Tensor:
    return kl.sum(dim=1).clamp(min=target_rate)


def _batch(kl: Tensor, batch_mean: Tensor | None, target_rate: float) -> Tensor:
    return torch.where(batch_mean.sum() > target_rate, kl.sum(dim=1), target_rate)


FREE_BITS: dict[str, FreeBits] = {
    "none": FreeBits(_none),
    # Σ_d max(λ/m, mean over the batch of KL_d): the paper's, section 6.1.
    "dimension": FreeBits(_dimension, needs_batch_mean=True),
    # Σ_d max(λ/m, KL_d) of each sentence: Li et al. (2019), their --fb 2.
    "sentence_dimension": FreeBits(_sentence_dimension),
    # max(λ, KL) of each sentence.
    "sentence": FreeBits(_sentence),
    # max(λ, mean over the batch of KL).
    "batch": FreeBits(_batch, needs_batch_mean=True),
}
