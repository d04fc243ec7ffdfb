"""The trials of a sweep, run by Ray Tune: start or restore Tune, and follow its trials."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar

from ray import tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter
from tqdm import tqdm

from distvae.runs.status import is_running
from distvae.sweeps import lineage
from distvae.sweeps.progress import State, Trial
from distvae.sweeps.ray import console
from distvae.sweeps.ray.cluster import failure_reason
from distvae.sweeps.ray.placement import gpus_of
from distvae.sweeps.ray.search import scheduler, searcher, trial_number
from distvae.sweeps.ray.state import SweepState
from distvae.sweeps.ray.tune_files import remove_torn
from distvae.sweeps.report import write_hparams
from distvae.system.errors import UserError, printable
from distvae.system.signals import InterruptedRun

Trainable = Callable[[dict[str, Any]], None]


def run_trials(state: SweepState, shared: frozenset[str]) -> None:
    """Run the trials that have not ended.

    Args:
        shared: fingerprints of the available pretrainings.

    Raises:
        InterruptedRun: a signal asked to stop.
    """
    settings = state.sweep.config.trial
    sweep, where = state.sweep, os.getcwd()

    def trial(choice: dict[str, Any]) -> None:
        from distvae.sweeps.ray.trial import run_trial  # late: only trials need torch

        run_trial(choice, sweep, shared, where)

    # A process that only starts others needs almost nothing, but must request something.
    resources = {"memory": 1.0}
    if settings.workers == 1:
        resources = {"CPU": settings.cpus, "GPU": gpus_of(sweep)}
    TuneMonitor.current = monitor = TuneMonitor(state)
    tuner = make_tuner(state, tune.with_resources(trial, resources))
    with tqdm(
        total=sweep.trials, desc="trials", unit=" trials", disable=not sys.stderr.isatty(), dynamic_ncols=True
    ) as monitor.bar:
        monitor.bar.update(sum(trial.ended for trial in state.trials.values()))
        with state.timed("trial_seconds"):
            tuner.fit()
    state.lease.check()
    if state.interrupted:
        for number in state.running:
            state.trials[number].state = "waiting"
        raise InterruptedRun(f"{state.folder}: interrupted by {state.signals.received}, {console.counts(state)}")
    state.save()


def make_tuner(state: SweepState, trainable: Trainable) -> tune.Tuner:
    """Restore Tune from the state that it saved, or make a new one."""
    config, objective = state.sweep.config, state.sweep.config.objective
    saved = state.folder / "tune"
    if remove_torn(saved, config.search):
        return tune.Tuner.restore(str(saved), trainable=trainable, resume_unfinished=True)
    # Tune starts over; trials that have a folder resume in it.
    shutil.rmtree(saved, ignore_errors=True)
    saved.mkdir()
    search = searcher(state.sweep)
    if search:
        state.trials.clear()  # the searcher may draw other values
    # Trials that are known in advance form a grid.
    space = None if search else {"values": tune.grid_search(state.sweep.points())}
    return tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric=None if objective.second else "objective",
            mode=None if objective.second else objective.mode,
            search_alg=BoundedSearcher(search, max_concurrent=max_concurrent(state)) if search else Grid(),
            scheduler=scheduler(state.sweep),
            num_samples=state.sweep.trials if search else 1,
            # The processes of a trial of several may outlast the time that Tune waits for them before reuse.
            reuse_actors=config.trial.workers == 1,
            trial_name_creator=trial_name,
            trial_dirname_creator=trial_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(state.folder),
            stop=SweepLimits(),
            callbacks=[Reporter()],
            failure_config=tune.FailureConfig(max_failures=config.max_restarts),
            verbose=0,
        ),
    )


def max_concurrent(state: SweepState) -> int:
    """Return how many trials Tune may start at a time; 0 for no limit but resources."""
    # A searcher should not draw a trial that has to wait, and Tune does not see what trials of several processes need.
    if state.sweep.config.search == "optuna" or state.sweep.config.trial.workers > 1:
        return state.progress.slots
    return state.sweep.config.max_concurrent or 0


class TuneMonitor:
    """Follows Tune's trials: records their states, prints those that end, and interrupts Tune on a signal."""

    # Tune pickles its callbacks; restored ones find the monitor of this process here.
    current: ClassVar[TuneMonitor]

    def __init__(self, state: SweepState):
        self.state = state
        self.bar: tqdm[Any] = tqdm(disable=True)
        self._table = console.StatusTable(state)
        self._interrupt_tune: Callable[[int, FrameType | None], Any] | None = None

    def before_step(self) -> None:
        """Take SIGUSR1 back from Tune, and check the sweep's limits."""
        if self._interrupt_tune is None:
            # Tune's handler of this signal saves Tune's state and ends it.
            handler = signal.getsignal(signal.SIGUSR1)
            if callable(handler) and handler != self.state.signals.handle:
                self._interrupt_tune = handler
                signal.signal(signal.SIGUSR1, self.state.signals.handle)
        self.state.check_limits()

    def after_step(self, found: list[TuneTrial]) -> None:
        """Record the states of Tune's trials. On a signal, have them save themselves, then interrupt Tune."""
        state = self.state
        if state.interrupted:
            return
        state.count_time()
        if any([self._update(one) for one in found]):
            state.save()
        self._table.update()
        if state.signals.received is not None or state.lease.lost:
            deadline = state.request_save()
            saving = any(_newest_run_is_running(state, number) for number in state.running)
            if not saving or time.monotonic() >= deadline:
                state.interrupted = True
                if self._interrupt_tune is None:
                    raise RuntimeError("Ray Tune has installed no handler for SIGUSR1")
                self._interrupt_tune(signal.SIGUSR1, None)

    def _update(self, one: TuneTrial) -> bool:
        """Record the state of a trial. Return whether it has changed."""
        state, number = self.state, trial_number(one.trial_id, one.config)
        trial = state.trials.setdefault(number, Trial(number, one.config["values"]))
        now, reason = self.state_of(one)
        if trial.ended or (trial.state, trial.reason) == (now, reason):
            return False
        if now == "running":
            trial.begun = trial.begun or time.time()
            trial.starts += 1
            state.running.add(number)
        else:
            state.running.discard(number)
        trial.values = one.config["values"]
        trial.node = (one.last_result or {}).get("node", trial.node)
        trial.state, trial.reason = now, reason
        if trial.ended:
            try:
                write_hparams(state.folder, state.sweep, trial)
            except UserError as error:  # its records are damaged, which is why it failed
                print(f"distvae: WARNING {error}", file=sys.stderr)
            tqdm.write(printable(console.trial_line(state, trial)), file=sys.stdout)
            sys.stdout.flush()
            self.bar.update(1)
        return True

    def state_of(self, one: TuneTrial) -> tuple[State, str | None]:
        """Return the state of one of Tune's trials, and the reason if it failed or was stopped."""
        result = one.last_result or {}
        if one.status == "RUNNING":
            return "running", None
        if one.status == "TERMINATED":
            if result.get("failed"):
                return "failed", result["failed"]
            if result.get("ended"):
                return "finished", None
            name = self.state.sweep.config.scheduler.name
            return "stopped", self.state.ended_by or f"ended by {name}, because others do better"
        if one.status == "ERROR":  # Tune sets a trial that it retries back to PENDING within the same step
            return "failed", failure_reason(one.get_error())
        return "waiting", None


def _newest_run_is_running(state: SweepState, number: int) -> bool:
    runs = lineage.generations(state.folder, number)
    return bool(runs) and is_running(runs[-1].run)


class _CurrentLimit:
    """Limits the trials at a time to the current number. Tune would restore the number that it saved, but the nodes or
    ``max_concurrent`` may have changed."""

    @property
    def max_concurrent(self) -> int:
        return max_concurrent(TuneMonitor.current.state)

    @max_concurrent.setter
    def max_concurrent(self, value: int) -> None:
        """Ignore what Tune sets."""


class Grid(_CurrentLimit, BasicVariantGenerator):
    """Chooses trials that are known in advance."""


class BoundedSearcher(_CurrentLimit, ConcurrencyLimiter):
    """Has a searcher draw a trial only when there is room for it."""


class SweepLimits(tune.Stopper):
    """Stops Tune when the sweep has reached one of its limits."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return TuneMonitor.current.state.ended_by is not None


class Reporter(tune.Callback):
    """Passes Tune's steps on to the monitor."""

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        TuneMonitor.current.before_step()

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        TuneMonitor.current.after_step(trials)

    def on_experiment_end(self, trials: list[TuneTrial], **info: Any) -> None:
        TuneMonitor.current.after_step(trials)


def trial_name(trial: TuneTrial) -> str:
    """Return a trial's name in Tune's folder."""
    return f"trial_{trial_number(trial.trial_id, trial.config):04d}"
