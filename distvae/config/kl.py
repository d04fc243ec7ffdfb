"""The ``kl`` section: a γ policy and a free-bits form."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from distvae.config.sections import Section
from distvae.methods import FreeBits, Policy
from distvae.methods.free_bits import NoFreeBits
from distvae.methods.soft_free_bits import SoftFreeBits
from distvae.system.settings import RULES


@dataclass(frozen=True, config=RULES)
class KLConfig(Section):
    """What sets γ, the weight of the KL term, and what replaces the KL term (paper, section 6.1, Algorithm 1)."""

    # What sets γ.
    policy: Policy = SoftFreeBits()
    # What replaces the KL term.
    free_bits: FreeBits = NoFreeBits()

    @property
    def rate(self) -> float | None:
        """λ in nats per sentence, where the policy or the free bits have one."""
        return self.free_bits.rate if self.policy.rate is None else self.policy.rate
