"""Free bits: what replaces the KL term of the objective (paper, section 6.1).

A form gives each sentence its *share*: the mean of the shares over the global batch is the objective's KL term, and
their gradients are its gradient. Forms that bound the mean over the batch take that mean as a constant, summed over all
ranks beforehand, and gate each dimension by it: no gradient passes through a collective.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic.dataclasses import dataclass

from distvae.system.roles import Role
from distvae.system.settings import RULES, NotNegative

if TYPE_CHECKING:  # a config needs the options alone, and PyTorch takes a second to import
    from torch import Tensor


@dataclass(frozen=True, config=RULES)
class NoFreeBits:
    """The KL itself."""

    name: Literal["none"] = "none"

    label: ClassVar[str] = ""
    rate: ClassVar[float | None] = None
    needs_batch_mean: ClassVar[bool] = False

    def shares(self, kl: Tensor, batch_mean: Tensor | None) -> Tensor:
        """Return each sentence's share of the KL term, in nats.

        Args:
            kl: KL of each sentence and dimension, [b, m].
            batch_mean: mean of ``kl`` over the global batch, [m], where ``needs_batch_mean``.

        Returns:
            shares, [b].
        """
        return kl.sum(dim=1)


@dataclass(frozen=True, config=RULES)
class _FreeBits:
    # Floor λ of the KL term, in nats per sentence.
    target_rate: Annotated[NotNegative, Role.MUTABLE] = 4.0

    label: ClassVar[str] = "FB"

    @property
    def rate(self) -> float:
        return self.target_rate


@dataclass(frozen=True, config=RULES)
class DimensionBits(_FreeBits):
    """Σ_d max(λ/m, mean over the batch of KL_d): the paper's, section 6.1."""

    name: Literal["dimension"] = "dimension"
    needs_batch_mean: ClassVar[bool] = True

    def shares(self, kl: Tensor, batch_mean: Tensor | None) -> Tensor:
        assert batch_mean is not None
        floor = self.target_rate / kl.shape[1]
        return kl.where(batch_mean > floor, floor).sum(dim=1)


@dataclass(frozen=True, config=RULES)
class SentenceDimensionBits(_FreeBits):
    """Σ_d max(λ/m, KL_d) of each sentence: Li et al. (2019), their ``--fb 2``."""

    name: Literal["sentence_dimension"] = "sentence_dimension"
    needs_batch_mean: ClassVar[bool] = False

    def shares(self, kl: Tensor, batch_mean: Tensor | None) -> Tensor:
        return kl.clamp(min=self.target_rate / kl.shape[1]).sum(dim=1)


@dataclass(frozen=True, config=RULES)
class SentenceBits(_FreeBits):
    """max(λ, KL) of each sentence."""

    name: Literal["sentence"] = "sentence"
    needs_batch_mean: ClassVar[bool] = False

    def shares(self, kl: Tensor, batch_mean: Tensor | None) -> Tensor:
        return kl.sum(dim=1).clamp(min=self.target_rate)


@dataclass(frozen=True, config=RULES)
class BatchBits(_FreeBits):
    """max(λ, mean over the batch of KL)."""

    name: Literal["batch"] = "batch"
    needs_batch_mean: ClassVar[bool] = True

    def shares(self, kl: Tensor, batch_mean: Tensor | None) -> Tensor:
        assert batch_mean is not None
        return kl.sum(dim=1).where(batch_mean.sum() > self.target_rate, self.target_rate)
