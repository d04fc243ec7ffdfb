"""The metrics of a trial that Tune and its schedulers get, computed from the trial's records."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from distvae.config.schema import Config
from distvae.runs.records import EpochRecord
from distvae.sweeps import lineage, ranking
from distvae.sweeps.ray.trial_runs import has_values
from distvae.sweeps.space import Value
from distvae.sweeps.sweep import Sweep
from distvae.system.errors import UserError

# Worse than any score.
_WORST = 1e9


def current_metrics(sweep: Sweep, config: Config, run: Path) -> dict[str, Any]:
    """Return the metrics of a trial that has records, and the node that it runs on."""
    return metrics_of(sweep, config, lineage.history(sweep.folder, run)) | {"node": socket.gethostname()}


def past_metrics(sweep: Sweep, number: int, values: dict[str, Value]) -> list[dict[str, Any]]:
    """Return the metrics that a trial has reported, epoch by epoch, from its records; none for a new trial."""
    try:
        runs = [g for g in lineage.generations(sweep.folder, number) if has_values(sweep, g, values)]
        if not runs:
            return []
        rows, config = lineage.history(sweep.folder, runs[-1].run), sweep.config_of(values, runs[-1].run)
        return [metrics_of(sweep, config, rows[:n]) for n, row in enumerate(rows, 1) if row.stage == "train"]
    except (UserError, ValueError, KeyError, TypeError):  # damaged records: the trial fails when it runs
        return []


def metrics_of(sweep: Sweep, config: Config, rows: list[EpochRecord]) -> dict[str, Any]:
    """Return what Tune needs to compare trials.

    Args:
        rows: the trial's records, up to an epoch whose validation has been scored.

    Raises:
        ValueError: the records have no validation scores.
    """
    objective, found = sweep.config.objective, ranking.outcome(config, rows)
    if found is None:
        raise ValueError(f"{config.run}: its records have no validation scores")
    return {
        "objective": ranking.score(objective, found),
        "second": None if objective.second is None else ranking.score(objective, found, second=True),
        "judged_epochs": ranking.judged_epochs(config, rows),
        "epoch": rows[-1].epoch,
        **found.metrics,
    }


def failed_metrics(sweep: Sweep, failure: str) -> dict[str, Any]:
    """Return the metrics of a trial that has failed: worse than those of all others."""
    objective = sweep.config.objective
    second_mode = objective.mode if objective.second is None else objective.second_mode
    return {
        "objective": _worst(objective.mode),
        "second": _worst(second_mode),
        "judged_epochs": 0,
        "failed": failure,
    }


def _worst(mode: str) -> float:
    return _WORST if mode == "min" else -_WORST
