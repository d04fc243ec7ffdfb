"""A trial: a run like any other, in processes that Ray starts. It resumes from its folder when they are lost."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import ray.train
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from distvae.config.schema import Config
from distvae.runs import checkpoints
from distvae.runs.attempts import SupersededError
from distvae.runs.records import EpochRecord
from distvae.sweeps import lineage, ranking
from distvae.sweeps.ray.search import trial_number
from distvae.sweeps.ray.stop_file import StopFileWatcher
from distvae.sweeps.ray.trial_metrics import current_metrics, failed_metrics
from distvae.sweeps.ray.trial_runs import choose_run, trial_config
from distvae.sweeps.ray.workers import enter_worker, torch_trainer
from distvae.sweeps.sweep import Sweep
from distvae.system.errors import PeerError, UserError
from distvae.system.files import as_json
from distvae.system.programs import out_of_memory
from distvae.system.signals import InterruptedRun, Signals
from distvae.train import train
from distvae.training.caller import Caller


def run_trial(choice: dict[str, Any], sweep: Sweep, shared: frozenset[str], where: str) -> None:
    """Train a trial in a process that Tune started, and report each epoch.

    Args:
        choice: what Tune has chosen: the trial's ``values``, and its ``number`` if Optuna drew it.
        shared: fingerprints of the available pretrainings.
        where: the folder to which relative paths in configs refer.
    """
    enter_worker(where)
    values = choice["values"]
    number = trial_number(str(tune.get_context().get_trial_id()), choice)
    saved = tune.get_checkpoint()
    with _logged(sweep.folder, f"{number:04d}"):
        run, resume = choose_run(sweep, number, values, None if saved is None else Path(saved.path))
        config = trial_config(sweep, values, run, shared)
        if resume is not None:
            config = replace(config, resume=str(resume))
        if sweep.config.trial.workers == 1:
            failure = _train(sweep, config, run, number)
        else:
            failure = _train_in_processes(sweep, config, run, number)
        metrics = current_metrics(sweep, config, run) if failure is None else failed_metrics(sweep, failure)
        tune.report(metrics | {"ended": True, "node": socket.gethostname()})


@contextlib.contextmanager
def _logged(folder: Path, name: str) -> Iterator[None]:
    """Redirect what this process prints to a file in ``logs/``."""
    (folder / "logs").mkdir(exist_ok=True)
    with (
        (folder / "logs" / f"{name}.log").open("a", encoding="utf-8", buffering=1) as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        try:
            yield
        except Exception:
            traceback.print_exc()
            raise


def _train(sweep: Sweep, config: Config, run: Path, number: int) -> str | None:
    """Train in this process. Return why it failed, if it would fail again."""
    pbt = sweep.config.scheduler.name == "pbt"

    def after_epoch(record: EpochRecord) -> None:
        if record.stage != "train":
            return
        try:
            if sweep.config.trial.workers > 1:  # all must report; Tune gets the report of the first
                first = ray.train.get_context().get_world_rank() == 0
                ray.train.report(current_metrics(sweep, config, run) if first else {})
            elif pbt:
                _report_with_checkpoint(sweep, config, run, number)
            else:
                tune.report(current_metrics(sweep, config, run))
        except SystemExit:  # Tune has ended the trial
            raise InterruptedRun(f"{run}: ended by the sweep") from None

    caller = Caller(
        after_epoch,
        waits=pbt,
        # The sweep's folder may have been moved, and population-based training changes values.
        may_change=frozenset({"pretrained"} | (set(sweep.config.space) if config.resume != "auto" else set())),
        overtakes=True,  # Tune starts a trial only after its former process has ended
        group=sweep.folder.name,
    )
    signals = Signals()
    try:
        with StopFileWatcher(sweep.folder, signals):
            train(config, signals, caller)
    except InterruptedRun:
        if signals.asked is None:
            sys.exit(0)
        _wait_to_be_killed()
    except (SupersededError, PeerError):
        raise
    except UserError as error:
        return str(error)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return f"out of memory: {error}".splitlines()[0]
    return None


def _wait_to_be_killed() -> NoReturn:
    """Wait after the run has saved itself: a trial that returned would count as ended, and not be resumed."""
    while True:
        time.sleep(60)


def _report_with_checkpoint(sweep: Sweep, config: Config, run: Path, number: int) -> None:
    """Report an epoch to Tune, with the checkpoint from which this or another trial may continue."""
    newest = checkpoints.newest_checkpoint(run)
    if newest is None:
        raise UserError(f"{run}: has no checkpoint after an epoch")
    metrics = current_metrics(sweep, config, run)
    if ranking.is_over(config, lineage.history(sweep.folder, run)):
        # A trial that continued from here would train nothing, and be ranked under values that it never trained with.
        tune.report(metrics)
        return
    folder = Path(tempfile.mkdtemp(dir=sweep.folder / "tune"))
    try:
        shutil.copytree(newest, folder / "checkpoint", copy_function=os.link)
        origin = {"trial": number, "run": run.name, "step": checkpoints.load_state(newest).step}
        (folder / "origin.json").write_text(as_json(origin), encoding="utf-8")
        tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(str(folder)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _train_in_processes(sweep: Sweep, config: Config, run: Path, number: int) -> str | None:
    """Train in several processes, which may lie on several nodes. Return why it failed, if it would fail again."""
    work = functools.partial(run_process, sweep=sweep, config=config, run=run, number=number, where=os.getcwd())
    report = TuneReportCallback()  # type: ignore[no-untyped-call]  # Ray declares no types for it
    try:
        torch_trainer(sweep, work, f"processes-{number:04d}-{time.time_ns()}", [report]).fit()
    except ray.train.WorkerGroupError as error:
        for failure in error.worker_failures.values():
            cause = getattr(failure, "cause", failure)
            if isinstance(cause, _PermanentFailure):
                return str(cause)
        raise
    return None


class _PermanentFailure(Exception):  # noqa: N818
    """Raised by a worker whose run would fail again."""


def run_process(settings: dict[str, Any], sweep: Sweep, config: Config, run: Path, number: int, where: str) -> None:
    """Train as one process of several. ``settings`` is Ray's own argument, which is not used."""
    enter_worker(where)
    failure = _train(sweep, config, run, number)
    if failure is not None:
        raise _PermanentFailure(failure)
