"""How a run ends whose numbers are no longer finite: one line that says where, and the batch in a file."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from distvae.data.sentences import Sentences, Shards
from distvae.distributed.runtime import Runtime
from distvae.runs import checkpoints
from distvae.system.errors import PeerError, UserError
from distvae.training.stages import Stage, StageProgress
from distvae.training.writer import NoWriter


@dataclass(frozen=True)
class NotFinite:
    """Ends a run. Every rank calls the same method; the main process reports."""

    run: Path
    runtime: Runtime
    writer: NoWriter
    sentences: Sentences | Shards  # that steps train on

    def stop_at(self, step: int, batch: np.ndarray, stage: Stage, progress: StageProgress) -> NoReturn:
        """Stop because a step was not finite, and write what was in its batch."""
        lengths = self.sentences.lengths_of(batch)
        shown = ", ".join(map(str, batch[:8].tolist())) + (" …" if len(batch) > 8 else "")
        self.writer.not_finite(
            {
                "step": step,
                "stage": stage.name,
                "epoch": progress.epoch + 1,
                "kl_weight": stage.objective.gamma.value,
                "learning_rate": progress.plateau.learning_rate,
                "sentences": batch.tolist(),
                "lengths": lengths.tolist(),
            }
        )
        self.stop(
            f"the loss or gradient of step {step}, on sentences {shown} of {lengths.min()} to {lengths.max()} tokens"
            " (not_finite.json has all),",
            stage,
            progress,
            ", and optimizer.on_nan=skip skips such steps",
        )

    def stop(self, what: str, stage: Stage, progress: StageProgress, advice: str = "") -> NoReturn:
        """Stop because ``what`` is not finite."""
        if not self.runtime.is_main:
            raise PeerError("the main process tells why")
        with contextlib.suppress(UserError):
            self.writer.wait()
        last = next(reversed(checkpoints.list_checkpoints(self.run)), None)
        raise UserError(
            f"{self.run}: {what} is not finite ({stage.name}, epoch {progress.epoch + 1}), at γ"
            f" {stage.objective.gamma.value:.4g} and learning rate {progress.plateau.learning_rate:.4g}; the last good"
            f" checkpoint is {last or 'none yet'}; a lower optimizer.learning_rate or optimizer.clip_norm may"
            f" help{advice}"
        )
