"""Ways to keep the latent alive. Each is one file: its options, its rule, its state.

A policy sets γ, the weight of the KL term; a free-bits form replaces the KL term. To add one, write its file and name
it in the union below: its options become keys of the config's ``kl`` section.
"""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from distvae.methods.annealing import Constant, Linear
from distvae.methods.cyclical import Cyclical
from distvae.methods.free_bits import BatchBits, DimensionBits, NoFreeBits, SentenceBits, SentenceDimensionBits
from distvae.methods.from_above import FromAbove
from distvae.methods.lagrangian import Lagrangian
from distvae.methods.pi_control import PIControl
from distvae.methods.soft_free_bits import SoftFreeBits

_Policies = Constant | Linear | Cyclical | SoftFreeBits | FromAbove | Lagrangian | PIControl
_Forms = NoFreeBits | DimensionBits | SentenceDimensionBits | SentenceBits | BatchBits

Policy = Annotated[_Policies, Field(discriminator="name")]
FreeBits = Annotated[_Forms, Field(discriminator="name")]

POLICIES: dict[str, type[_Policies]] = {policy.name: policy for policy in get_args(_Policies)}
FREE_BITS: dict[str, type[_Forms]] = {form.name: form for form in get_args(_Forms)}
