"""Points of curves within an epoch."""

from __future__ import annotations

from distvae.methods.policy import Gamma
from distvae.training.stages import EpochProgress


class Points:
    """Means over the steps since the last point of an epoch, of this rank's sentences."""

    def __init__(self, epoch: EpochProgress):
        self._epoch = epoch
        self._mark()

    def _mark(self) -> None:
        self._totals, norms = self._epoch.sums.totals.clone(), self._epoch.norms
        self._norm_total, self._norm_steps = norms.total, norms.steps

    def take(self, gamma: Gamma, learning_rate: float) -> dict[str, float]:
        """Return a point of each curve, by name. Waits for the device. Empty if every step was skipped.

        RE and KL are in nats per sentence.
        """
        sentences, re, _, *kl = (self._epoch.sums.totals - self._totals).tolist()
        norm, steps = self._epoch.norms.total - self._norm_total, self._epoch.norms.steps - self._norm_steps
        self._mark()
        if not sentences or not steps:
            return {}
        return {
            "step/re": re / sentences,
            "step/kl": sum(kl) / sentences,
            "step/kl_weight": gamma.value,
            "step/learning_rate": learning_rate,
            "step/gradient_norm": norm / steps,
        }
