"""What a posterior q(z|x) declares: its options, and how much of a batch it needs. ``model/encoder.py`` builds it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from distvae.system.settings import RULES, AboveZero


@dataclass(frozen=True, config=RULES)
class GaussianPosterior:
    """The mean and log variance of q(z|x) are the encoder's outputs."""

    name: Literal["gaussian"] = "gaussian"

    label: ClassVar[str] = ""
    needs_batch: ClassVar[bool] = False


@dataclass(frozen=True, config=RULES)
class BatchNormPosterior:
    """BN-VAE (Zhu et al., 2020): the mean of q(z|x) is batch-normalised, which keeps the KL from 0."""

    name: Literal["batch_norm"] = "batch_norm"
    # γ of the paper, which is not the KL weight: the standard deviation of each dimension of the posterior mean over a
    # global batch. The mean KL is at least m/2 · mean_scale².
    mean_scale: AboveZero = 0.6

    label: ClassVar[str] = "BN"
    needs_batch: ClassVar[bool] = True  # whether a posterior depends on all sentences of its global batch
