"""The ranks that share the work of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Ranks(Protocol):
    """What an evaluation needs of its processes. ``Runtime`` is one of several; ``OneRank`` is alone."""

    @property
    def rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    def sum(self, values: Tensor) -> Tensor:
        """Sum over ranks, in place: one collective."""
        ...


@dataclass(frozen=True)
class OneRank:
    """A process that works alone. It changes no setting of the process, as ``Runtime`` does."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """Return the values, which are those of all ranks."""
        return values
