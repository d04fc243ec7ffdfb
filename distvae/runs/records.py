"""The records of a run's epochs: metrics.jsonl."""

from __future__ import annotations

import contextlib
import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from distvae.evaluation.liveness import Latent
from distvae.evaluation.metrics import METRICS
from distvae.evaluation.scores import LARGEST_SCORE, Scores, sums_agree
from distvae.runs import attempts
from distvae.system.errors import UserError
from distvae.system.files import check_as, damaged, parse_json, read_text
from distvae.system.settings import Count

# Duration of one piece of work; no clock measures longer ones.
Seconds = Annotated[float, Field(ge=0, le=1e10)]


@dataclass(frozen=True)
class TrainEpoch:
    """Training scores of an epoch over all ranks, in nats per sentence, with dropout on and changing weights."""

    re: float
    kl: float
    neg_elbo: float
    objective: float  # RE + γ·KL̃
    kl_per_dimension: tuple[float, ...]
    sentences: Annotated[int, Field(ge=1)]
    skipped: Count  # further sentences, in steps that were left out because they were not finite
    seconds: Annotated[float, Field(gt=0, le=1e10)]

    @property
    def sentences_per_second(self) -> float:
        return self.sentences / self.seconds


@dataclass(frozen=True)
class Saving:
    """Cost of the checkpoints since the last record."""

    count: Count
    stall_seconds: Seconds  # while training waited
    write_seconds: Seconds  # in the background thread


@dataclass(frozen=True)
class EpochRecord:
    """A line of metrics.jsonl."""

    stage: Literal["pretrain", "train"]
    epoch: Annotated[int, Field(ge=1)]  # within the stage, from 1
    step: Count  # optimizer steps of the run so far
    kl_weight: Annotated[float, Field(ge=-LARGEST_SCORE, le=LARGEST_SCORE)]  # γ at the end of the epoch
    learning_rate: Annotated[float, Field(ge=0, le=LARGEST_SCORE)]
    train: TrainEpoch
    valid: Scores
    valid_seconds: Seconds
    # Verdict of the plateau rule; "not counted" where the epoch does not count.
    verdict: Literal["improved", "wait", "decay", "stop", "not counted"]
    saving: Saving
    start: int  # number of the attempt that trained the end of the epoch
    latent: Latent | None = None  # on the validation sentences; None: too few to judge
    # Steps of the encoder alone in an epoch of aggressive training; None: the epoch was not aggressive.
    encoder_steps: Count | None = None
    # Mean over the steps, before clipping; under local SGD of the main process's own gradients. None: older version, or
    # every step was skipped.
    gradient_norm: Annotated[float, Field(ge=0)] | None = None
    # Of the main process so far, in MiB: of its GPU, or on a CPU of the process.
    peak_memory_mb: Annotated[float, Field(ge=0)] | None = None

    def scalars(self) -> dict[str, float]:
        """Return the points of this epoch on all curves, by the names of the curves."""
        train = self.train
        found = {
            "re/train": train.re,
            "kl/train": train.kl,
            "neg_elbo/train": train.neg_elbo,
            "objective/train": train.objective,
            "control/kl_weight": self.kl_weight,
            "control/learning_rate": self.learning_rate,
            "throughput/sentences_per_second": train.sentences_per_second,
            "throughput/checkpoint_stall_seconds": self.saving.stall_seconds,
            **{f"latent_kl/{d:02d}": kl for d, kl in enumerate(self.valid.kl_per_dimension)},
        }
        for metric in METRICS.values():
            value = metric.value(self.valid)
            if metric.curve is not None and value is not None:
                found[metric.curve] = value
        if self.latent is not None:
            found["latent/alive"] = float(self.latent.state == "alive")
        if self.encoder_steps is not None:
            found["control/encoder_steps"] = float(self.encoder_steps)
        if self.gradient_norm is not None:
            found["control/gradient_norm"] = self.gradient_norm
        if self.peak_memory_mb is not None:
            found["memory/peak_mb"] = self.peak_memory_mb
        return found


def read_metrics(run: Path) -> list[EpochRecord]:
    """Return the valid records in order.

    An attempt that was thought dead may have kept writing: its records after the step at which a later one took over
    are left out, and so is a truncated last line.

    Raises:
        UserError: the file cannot be read, or a line is not a record.
    """
    path = run / "metrics.jsonl"
    if not os.path.lexists(path):
        return []
    lines = read_text(path).split("\n")[:-1]
    records = [_parse(line, f"{path}: line {number}") for number, line in enumerate(lines, 1)]
    begun = attempts.read_attempts(run)
    counting = [record for record in records if record.start >= attempts.responsible(begun, record.step)]
    for before, record in itertools.pairwise(counting):
        follows = before.epoch + 1 if record.stage == before.stage else 1
        if record.step <= before.step or record.epoch != follows:
            one, other = (f"{each.stage} epoch {each.epoch} at step {each.step}" for each in (before, record))
            raise damaged(path, "a run's records", f"{other} comes after {one}")
    return counting


def _parse(line: str, source: str) -> EpochRecord:
    """Return the record in a line, after checking that its numbers agree."""
    content = parse_json(line, source)
    if isinstance(content, dict):
        content.setdefault("valid_seconds", 0.0)  # the first version did not record it
    record = check_as(EpochRecord, content, source, _RECORD)
    train = record.train
    why = record.valid.contradiction
    if not sums_agree(train.neg_elbo, train.re + train.kl):
        why = why or f"neg_elbo of train is {train.neg_elbo}, and re + kl is {train.re + train.kl}"
    if not sums_agree(train.kl, sum(train.kl_per_dimension)):
        why = why or f"kl of train is {train.kl}, and its dimensions add up to {sum(train.kl_per_dimension)}"
    if why is not None:
        raise damaged(source, _RECORD, why)
    return record


_RECORD = "a record of an epoch"


def last_latent(run: Path) -> Latent | None:
    """Return the latent of a run's last record; None if there is none."""
    with contextlib.suppress(UserError):
        records = read_metrics(run)
        return records[-1].latent if records else None
    return None
