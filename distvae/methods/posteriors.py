"""What a posterior q(z|x) declares: its options, its dropout, and how much of a batch it needs.

``model/encoder.py`` builds it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic.dataclasses import dataclass

from distvae.system.roles import Role
from distvae.system.settings import RULES, AboveZero, Probability


@dataclass(frozen=True, config=RULES)
class GaussianPosterior:
    """The mean and log variance of q(z|x) are the encoder's outputs."""

    name: Literal["gaussian"] = "gaussian"

    label: ClassVar[str] = ""  # in tables
    needs_batch: ClassVar[bool] = False  # whether a posterior depends on all sentences of its global batch
    variance_dropout: ClassVar[float] = 0.0  # probability that training drops a dimension's variance


@dataclass(frozen=True, config=RULES)
class BatchNormPosterior:
    """BN-VAE (Zhu et al., 2020): the mean of q(z|x) is batch-normalised, which keeps the KL from 0."""

    name: Literal["batch_norm"] = "batch_norm"
    # γ of the paper, which is not the KL weight: the standard deviation of each dimension of the posterior mean over a
    # global batch. The mean KL is at least m/2 · mean_scale². The README of the authors' program trains with 0.5, and
    # the paper has results of 0.7 (github.com/valdersoul/bn-vae, issue 3).
    mean_scale: AboveZero = 0.6

    label: ClassVar[str] = "BN"
    needs_batch: ClassVar[bool] = True
    variance_dropout: ClassVar[float] = 0.0


@dataclass(frozen=True, config=RULES)
class DUPosterior:
    """DU-VAE (Shen et al., 2021, «Regularizing Variational Autoencoder with Diversity and Uncertainty Awareness»).

    The mean of q(z|x) is batch-normalised to a learnt deviation in each dimension, and training drops variances at
    random, which makes them small. The authors' program floors and drops variances only while the KL weight is 1; here
    they always are, so that the posterior does not depend on the weight, which some policies never raise to 1.
    """

    name: Literal["du"] = "du"
    # γ of the paper: the root mean square over dimensions of the learnt deviations γ_d. This and variance_dropout are
    # those of the README's example for text.
    mean_scale: AboveZero = 0.5
    # α of the paper: what is added to each variance, in units of 1/(2πe). From 1, no dimension's entropy is below 0.
    variance_floor: AboveZero = 1.0
    # Probability that training sets the variance of a dimension to its floor. What is above the floor is divided by
    # 1 − variance_dropout elsewhere.
    variance_dropout: Annotated[Probability, Role.MUTABLE] = 0.2

    label: ClassVar[str] = "DU"
    needs_batch: ClassVar[bool] = True
