"""Learning-rate decay on plateau and early stop (paper, section 6.2): best weights back at every decay."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from distvae.config.schema import PlateauConfig


class Verdict(Enum):
    IMPROVED = "improved"
    WAIT = "wait"
    DECAY = "decay"
    STOP = "stop"


@dataclass
class Plateau:
    """Watches a stage's validation loss. Every rank holds one, and all see the same losses."""

    config: PlateauConfig
    learning_rate: float
    best: float | None = None
    waited: int = 0  # epochs since the best, or since the last decay
    decays: int = 0

    def observe(self, loss: float) -> Verdict:
        """Return what an epoch's validation loss asks for: keep these weights, wait, decay, or stop.

        On DECAY the learning rate has been multiplied, and the caller puts the best weights back; so it does on STOP,
        the last decay.
        """
        if loss < (math.inf if self.best is None else self.best):
            self.best, self.waited = loss, 0
            return Verdict.IMPROVED
        self.waited += 1
        if self.waited < self.config.patience:
            return Verdict.WAIT
        self.waited = 0
        self.decays += 1
        self.learning_rate *= self.config.decay
        return Verdict.STOP if self.decays >= self.config.max_decays else Verdict.DECAY

    def state_dict(self) -> dict[str, Any]:
        state = asdict(self)
        del state["config"]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learning_rate, self.best = state["learning_rate"], state["best"]
        self.waited, self.decays = state["waited"], state["decays"]
