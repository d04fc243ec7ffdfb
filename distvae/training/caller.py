"""What a program that trains as part of its own work asks of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from distvae.runs.records import EpochRecord


@dataclass(frozen=True)
class Caller:
    """What a program that trains as part of its own work, such as a sweep's trial, asks of a run."""

    # Called on every rank with each epoch's record, once the epoch has been handed over to be saved.
    after_epoch: Callable[[EpochRecord], None] = lambda record: None
    # Whether to write the checkpoint to disk before that call.
    waits: bool = False
    # More keys in which the config may differ from that of the checkpoint to resume from.
    may_change: frozenset[str] = frozenset()
    # Whether an attempt that seems to be alive is known to have ended.
    overtakes: bool = False
    # The name of the sweep that the run is a trial of.
    group: str | None = None
