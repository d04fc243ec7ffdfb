"""The ways to decode a sentence. They need no torch, so that a command can list them at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from distvae.system.errors import UserError


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
        if self.method not in ("greedy", "sample", "beam"):
            raise UserError(f"method {self.method!r}: should be greedy, sample or beam")
        owners = {"temperature": "sample", "top_k": "sample", "top_p": "sample", "beam_size": "beam"}
        for name, owner in owners.items():
            if self.method != owner and getattr(self, name) != type(self).__dict__[name]:
                raise UserError(f"{name} belongs to method {owner}, not to {self.method}")
        if not 0 < self.temperature < math.inf:
            raise UserError(
                f"temperature {self.temperature}: should be a number above 0 (for the likeliest token, use greedy)"
            )
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p}: should be above 0 and at most 1")
        for name in ("top_k", "beam_size", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} {value}: should be at least 1")
