"""Scores the best trials again, with more importance samples."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from distvae.config.schema import OptimizerConfig
from distvae.sweeps import lineage, ranking
from distvae.sweeps.ray.cluster import failure_reason
from distvae.sweeps.ray.placement import gpus_of
from distvae.sweeps.ray.state import SweepState
from distvae.sweeps.ray.workers import enter_worker
from distvae.system.errors import UserError, printable
from distvae.system.files import read_json, write_json
from distvae.system.signals import InterruptedRun


def score_finalists(state: SweepState) -> list[str]:
    """Score the finalists that have no scores yet. Return a message for each that could not be scored.

    Raises:
        InterruptedRun: a signal asked to stop.
    """
    config, folder = state.sweep.config, state.folder / "finalists"
    remote = ray.remote(score_run).options(
        num_cpus=config.trial.cpus, num_gpus=gpus_of(state.sweep), max_retries=config.max_restarts
    )
    tasks, unscored = {}, []
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.json"):
        if not _is_scored(path, config.finalists.importance_samples):
            path.unlink()
    finalists = _finalists(state)
    for number in finalists:
        run = lineage.generations(state.folder, number)[-1].run
        if not (folder / f"{number:04d}.json").exists() and (run / "best").is_dir():
            task = remote.remote(run, config.finalists.importance_samples, config.trial.threads, os.getcwd())
            tasks[task] = number
    if tasks:
        print(f"scoring finalists with K = {config.finalists.importance_samples}: {', '.join(map(str, finalists))}")
    with state.timed("finalist_seconds"):
        while tasks:
            done, _ = ray.wait(list(tasks), timeout=1.0)
            state.count_time()
            for task in done:
                number = tasks.pop(task)
                try:
                    write_json(folder / f"{number:04d}.json", ray.get(task))
                except ray.exceptions.RayError as error:
                    unscored.append(f"finalist {number} could not be scored: {failure_reason(error)}")
                    warning = f"distvae: WARNING {unscored[-1]}; rerun the same command to try again"
                    print(printable(warning), flush=True)
            if state.signals.received is not None:
                raise InterruptedRun(f"{state.folder}: interrupted by {state.signals.received} while scoring finalists")
    return unscored


def score_run(run: Path, importance_samples: int, threads: int, where: str) -> dict[str, Any]:
    """Score a run's validation and test sentences in this process, a Ray worker."""
    from distvae.distributed.runtime import Runtime  # late: the sweep's own process needs no torch
    from distvae.runs.checkpoints import load_export
    from distvae.runs.rescoring import rescore
    from distvae.runs.results import results_to_dict

    enter_worker(where)
    found = load_export(run)
    runtime = Runtime(OptimizerConfig(mixed_precision="no"), cpu_threads=threads)
    try:
        settings = replace(found.config.evaluation, importance_samples=importance_samples)
        return {
            split: results_to_dict(rescore(str(run), found, split, found.config.data, settings, runtime))
            for split in ("valid", "test")
        }
    finally:
        runtime.close()


def _finalists(state: SweepState) -> list[int]:
    objective, outcomes = state.sweep.config.objective, state.outcomes()
    ordered = ranking.rank(objective, outcomes) if objective.second is None else ranking.front(objective, outcomes)
    return ordered[: state.sweep.config.finalists.count]


def _is_scored(path: Path, importance_samples: int) -> bool:
    """Return whether a finalist's file has scores with this number of importance samples, or exact ones."""
    try:
        found = {scores["scores"]["importance_samples"] for scores in read_json(path).values()}
        return found in ({importance_samples}, {0})
    except (UserError, AttributeError, KeyError, TypeError):  # damaged
        return False
