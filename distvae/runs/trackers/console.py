"""The tracker that prints a line per epoch."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from tqdm import tqdm

from distvae.config.load import load_config
from distvae.evaluation.metrics import METRICS
from distvae.runs.records import EpochRecord
from distvae.runs.trackers.tracker import Tracker
from distvae.system.errors import UserError
from distvae.system.plural import counted


class Console(Tracker):
    """Prints epochs and warnings to stdout."""

    def __init__(self, run: Path, step: int, resumed: int = 0):
        self._name, self._most = run.name, _most_epochs(run)

    def epoch(self, record: EpochRecord) -> None:
        _print(epoch_line(record, self._most.get(record.stage)))

    def warn(self, text: str, step: int) -> None:
        _print(f"WARNING {self._name}: {text}")


def _most_epochs(run: Path) -> dict[str, int]:
    """Return the most epochs of each stage by the config of the run folder; nothing if it has none."""
    with contextlib.suppress(UserError):
        config = load_config(run / "config.yaml", stored=True)
        return {"pretrain": config.pretrain.max_epochs, "train": config.train.max_epochs}
    return {}


def epoch_line(record: EpochRecord, most: int | None = None) -> str:
    """Return an epoch as one line of text.

    Args:
        most: epochs of the stage at most; None if it is not known.
    """
    train = record.train
    mark = {"improved": "best", "not counted": "", "wait": ""}.get(record.verdict, record.verdict)
    if train.skipped:
        mark = f"{counted(train.skipped, 'sentence')} skipped, not finite  {mark}"
    if record.encoder_steps is not None:
        mark = f"aggressive, {record.encoder_steps:,} encoder steps  {mark}"
    if record.latent is not None and record.latent.state != "alive":
        mark = f"{record.latent.state}  {mark}"
    valid = " ".join(
        f"{metric.title} {metric.number(value):>{metric.width}}"
        for metric in METRICS.values()
        if metric.curve is not None and (value := metric.value(record.valid)) is not None
    )
    epoch = f"{record.epoch:>3}" if most is None else f"{record.epoch:>3}/{most}"
    return (
        f"{record.stage:<8} {epoch}  γ {record.kl_weight:<5.3f} lr {record.learning_rate:<7.3g}"
        f" train RE {train.re:6.2f} KL {train.kl:5.2f}  valid {valid}  {train.sentences_per_second:6.0f}/s  {mark}"
    ).rstrip()


def _print(line: str) -> None:
    tqdm.write(line, file=sys.stdout)  # above the progress bar
    sys.stdout.flush()
