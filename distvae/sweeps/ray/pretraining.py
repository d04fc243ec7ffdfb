"""The pretrainings that several trials share. Each is trained once, before the trials."""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import ray
import ray.train

from distvae.config.schema import Config
from distvae.runs.status import is_running
from distvae.sweeps.pretraining import pretraining_folder
from distvae.sweeps.ray.cluster import failure_reason
from distvae.sweeps.ray.console import print_epochs
from distvae.sweeps.ray.placement import gpus_of
from distvae.sweeps.ray.state import SECONDS_TO_SAVE, SweepState
from distvae.sweeps.ray.stop_file import StopFileWatcher
from distvae.sweeps.ray.workers import enter_worker, torch_trainer
from distvae.sweeps.sweep import Sweep
from distvae.system.errors import UserError, printable
from distvae.system.signals import InterruptedRun, Signals
from distvae.training.caller import Caller


def pretrain(state: SweepState) -> frozenset[str]:
    """Train the missing pretrainings. Return the fingerprints of those available.

    Raises:
        InterruptedRun: a signal asked to stop.
    """
    configs = state.sweep.pretrainings()
    missing = {name: config for name, config in configs.items() if not _is_available(state.sweep, name)}
    if missing:
        print(f"pretraining for all trials: {', '.join(missing)}")
        with state.timed("pretraining_seconds"):
            if state.sweep.config.trial.workers > 1:
                for name, config in missing.items():
                    _pretrain_in_processes(state, name, config)
            else:
                _pretrain_side_by_side(state, missing)
        state.save()
    return frozenset(name for name in configs if _is_available(state.sweep, name))


def run_pretraining(config: Config, sweep: Sweep, where: str) -> str | None:
    """Pretrain in this process, a Ray worker. Return why it failed or was stopped, or None."""
    from distvae.train import train  # late: the sweep's own process needs no torch

    enter_worker(where)
    signals = Signals()
    try:
        with StopFileWatcher(sweep.folder, signals):
            train(config, signals, Caller(overtakes=True, group=sweep.folder.name))
    except (UserError, InterruptedRun) as error:
        return str(error)
    return None


def _pretrain_side_by_side(state: SweepState, missing: dict[str, Config]) -> None:
    """Run pretrainings of one process each as Ray tasks."""
    settings = state.sweep.config.trial
    remote = ray.remote(run_pretraining).options(
        num_cpus=settings.cpus, num_gpus=gpus_of(state.sweep), max_retries=state.sweep.config.max_restarts
    )
    tasks = {remote.remote(config, state.sweep, os.getcwd()): name for name, config in missing.items()}
    seen = dict.fromkeys(missing, 0)
    while tasks:
        done, _ = ray.wait(list(tasks), timeout=1.0)
        state.count_time()
        for name, config in missing.items():
            run = pretraining_folder(state.folder, name)
            seen[name] = print_epochs(name, run, seen[name], config.pretrain.max_epochs)
        for task in done:
            name = tasks.pop(task)
            try:
                failure = ray.get(task)
            except ray.exceptions.RayError as error:
                failure = failure_reason(error)
            if failure is not None and state.signals.received is None:
                _warn_of_failure(name, failure)
        state.check_limits()
        if state.signals.received is not None:
            state.request_save()
            if tasks:
                ray.wait(list(tasks), num_returns=len(tasks), timeout=SECONDS_TO_SAVE)
            raise _interrupted(state)


def _pretrain_in_processes(state: SweepState, name: str, config: Config) -> None:
    """Run one pretraining of several processes with Ray Train."""
    from distvae.sweeps.ray.trial import run_process

    run, seen = pretraining_folder(state.folder, name), 0
    work = functools.partial(run_process, sweep=state.sweep, config=config, run=run, number=-1, where=os.getcwd())
    done = _in_thread(torch_trainer(state.sweep, work, f"pretraining-{name}-{time.time_ns()}", []).fit)
    while not done.done():
        wait([done], timeout=1.0)
        state.count_time()
        seen = print_epochs(name, run, seen, config.pretrain.max_epochs)
        state.check_limits()
        if state.signals.received is not None:
            deadline = state.request_save()
            # The processes outlive this loop and end with Ray.
            while is_running(run) and time.monotonic() < deadline:
                time.sleep(0.5)
            raise _interrupted(state)
    try:
        done.result()
    except ray.train.TrainingFailedError as error:
        _warn_of_failure(name, failure_reason(error))


def _interrupted(state: SweepState) -> InterruptedRun:
    return InterruptedRun(f"{state.folder}: interrupted by {state.signals.received} while pretraining")


def _warn_of_failure(name: str, failure: str) -> None:
    warning = f"distvae: WARNING the pretraining {name} failed, so each of its trials pretrains by itself: {failure}"
    print(printable(warning), flush=True)


def _is_available(sweep: Sweep, name: str) -> bool:
    return (pretraining_folder(sweep.folder, name) / "results.json").exists()


def _in_thread(work: Callable[[], Any]) -> Future[Any]:
    """Run work in a daemon thread. In the main thread, Ray would take its signals or block them."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done
