"""The ways to decode a sentence. They need no torch, so that a command can list them at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Literal

from distvae.system.errors import UserError
from distvae.system.settings import LARGEST_INT, whole

# Whole numbers, with the lowest and the highest value of each.
_WHOLE = (("top_k", 1, LARGEST_INT), ("beam_size", 1, LARGEST_INT), ("max_tokens", 1, LARGEST_INT), ("seed", 0, None))


@dataclass(frozen=True)
class Decoding:
    """How sentences are decoded from p(x|z).

    Raises:
        UserError: a value is out of range, or belongs to another method.
    """

    method: Literal["greedy", "sample", "beam"] = "greedy"
    temperature: float = 1.0  # of `sample`
    top_k: int | None = None  # `sample` from the k most likely tokens
    top_p: float | None = None  # `sample` from the most likely tokens with total probability p
    beam_size: int = 5  # of `beam`
    max_tokens: int = 40  # length limit of a sentence without `</s>`
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most in _WHOLE:
            if (value := getattr(self, name)) is not None or name != "top_k":
                object.__setattr__(self, name, whole(name, value, least, most))
        if self.method not in ("greedy", "sample", "beam"):
            raise UserError(f"method {self.method!r}: should be greedy, sample or beam")
        owners = {"temperature": "sample", "top_k": "sample", "top_p": "sample", "beam_size": "beam"}
        for name, owner in owners.items():
            if self.method != owner and getattr(self, name) != type(self).__dict__[name]:
                raise UserError(f"{name} belongs to method {owner}, not to {self.method}")
        if not isinstance(self.temperature, Real) or not 0 < self.temperature < math.inf:
            raise UserError(
                f"temperature {self.temperature!r}: should be a number above 0 (for the likeliest token, use greedy)"
            )
        if self.top_p is not None and not (isinstance(self.top_p, Real) and 0 < self.top_p <= 1):
            raise UserError(f"top_p {self.top_p!r}: should be a number above 0 and at most 1")
