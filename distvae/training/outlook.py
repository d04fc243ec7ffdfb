"""How long a run still trains."""

from __future__ import annotations

from collections.abc import Sequence

from distvae.training.stages import Stage


class Outlook:
    """Estimates how long a run still trains if it needs all its epochs, which a plateau may save.

    Args:
        stages: of the run, in order.
    """

    def __init__(self, stages: Sequence[Stage]):
        self._stages = list(stages)
        self._seconds: dict[str, float] = {}  # of the last epoch of each stage, with its validation

    def end_epoch(self, stage: Stage, seconds: float) -> None:
        """Take the seconds of an epoch and its validation."""
        self._seconds[stage.name] = seconds

    def left(self, stage: Stage, ended: int, share: float, seconds: float) -> float | None:
        """Return the seconds left within an epoch; None while nothing is known.

        Later stages count as if their epochs took as long as those of this one.

        Args:
            ended: epochs of the stage that have ended.
            share: of this epoch that is done.
            seconds: that this epoch has taken.
        """
        epoch = self._seconds.get(stage.name, seconds / share if share else None)
        if epoch is None:
            return None
        later = self._stages[[each.name for each in self._stages].index(stage.name) + 1 :]
        epochs = stage.max_epochs - ended - 1 + sum(each.max_epochs for each in later)
        return epochs * epoch + max(epoch - seconds, 0.0)
