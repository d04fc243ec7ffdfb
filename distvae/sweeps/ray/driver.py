"""Runs a sweep: its pretrainings, its trials, its finalists, its report."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NoReturn

import ray

from distvae.data import corpus
from distvae.runs import attempts
from distvae.runs.attempts import Lease, SupersededError
from distvae.runs.trackers.libraries import require_packages
from distvae.sweeps import checks, storage
from distvae.sweeps.progress import load_progress
from distvae.sweeps.ray import cluster, console, stop_file
from distvae.sweeps.ray.finalists import score_finalists
from distvae.sweeps.ray.placement import Placement, fit, fitted
from distvae.sweeps.ray.pretraining import pretrain
from distvae.sweeps.ray.signals import StopSignals
from distvae.sweeps.ray.state import SweepState
from distvae.sweeps.ray.tuning import run_trials
from distvae.sweeps.report import write_report
from distvae.sweeps.sweep import Sweep
from distvae.system.errors import UserError, printable
from distvae.system.files import write_text, writing
from distvae.system.plural import counted
from distvae.system.signals import INTERRUPTED, InterruptedRun


def run_sweep(sweep: Sweep, scratch: Path) -> int:
    """Run a sweep in its folder, or resume it. Return the program's exit code.

    Args:
        scratch: a temporary folder, see ``sweeps.ray.scratch``.

    Raises:
        UserError: bad input, or a failed pretraining.
        InterruptedRun: a signal asked to stop.
    """
    began = time.monotonic()  # starting Ray and preparing sentences count as the sweep's time
    check_folder(sweep)
    require_packages(sweep.config_of({}, sweep.folder).tracking.trackers)
    signals, closing, watched = StopSignals(), threading.Event(), _Watched(sweep.folder, scratch)
    with contextlib.ExitStack() as afterwards:
        try:
            signals.install()
            # A failure of a trial is reported in one line here, and in full in its log.
            for name in ("ray.tune", "ray.train"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
            cluster.connect(watched.give_up, closing)
            signals.install()  # again, because Ray replaces the handlers
            # Check all input before the folder is made: a corrected sweep would find it taken.
            placement = fit(sweep)
            prepare_sentences(sweep)
            state = open_folder(sweep, signals, began)
            afterwards.callback(state.lease.release)
            watched.opened(state)
            return run_stages(state, placement)
        finally:
            closing.set()
            ray.shutdown()


def run_stages(state: SweepState, placement: Placement) -> int:
    """Run what is left of a sweep whose folder is open. Return the exit code."""
    state.progress.starts += 1
    state.progress.begun = state.progress.begun or time.time() - state.elapsed()
    try:
        _place(state, placement)
        shared = pretrain(state)
        run_trials(state, shared)
        state.progress.ended_by = state.ended_by
        reasons = [*filter(None, [state.ended_by]), *score_finalists(state)]
        end(state, "finished" if state.succeeded else "failed", "; ".join(reasons) or None)
    except InterruptedRun as interrupted:
        end(state, "interrupted", str(interrupted))
        raise
    except SupersededError:
        raise
    except BaseException as error:
        end(state, "failed", str(error))
        raise
    return 0 if state.succeeded else 1


def check_folder(sweep: Sweep) -> None:
    """Check that the sweep can begin in its folder, or resume there.

    Raises:
        UserError: it cannot.
    """
    folder = sweep.folder
    if not folder.exists():
        return
    try:
        empty = not any(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be a sweep's folder: {error.strerror}") from None
    if not empty and not storage.is_sweeps(folder):
        raise UserError(f"{folder}: is not empty, and no sweep wrote its content; name another run=FOLDER")
    # An attempt that was killed while it opened the folder may not have written both.
    if all((folder / name).exists() for name in ("sweep.yaml", "base.yaml")):
        differing = storage.differences(storage.open_sweep(folder), sweep)
        if differing:
            raise UserError(f"{folder}: holds another sweep: {', '.join(differing)}; name another run=FOLDER")
        known, now = load_progress(folder).data, data_fingerprint(sweep)
        if known not in (None, now):
            raise UserError(
                f"{folder}: its trials have other sentences ({known}) than data.path names now ({now}); name"
                f" another run=FOLDER, or print its trials by distvae sweep-report {folder}"
            )
    saved = folder / "tune"
    if saved.exists() and saved.stat().st_uid != os.geteuid():
        raise UserError(f"{saved}: belongs to another user; Tune reads it by pickle, which can execute code")


def data_fingerprint(sweep: Sweep) -> str | None:
    """Return the fingerprint of the sentences of all trials; None where trials have different ones."""
    if any(key.startswith("data.") for key in sweep.config.space):
        return None
    return corpus.fingerprint(sweep.config_of({}, sweep.folder).data)


def prepare_sentences(sweep: Sweep) -> None:
    """Prepare the sentences of all trials."""
    for data in dict.fromkeys(sweep.config_of(values, sweep.folder).data for values in sweep.samples()):
        corpus.prepare(data, progress=sys.stderr.isatty())


def open_folder(sweep: Sweep, signals: StopSignals, began: float) -> SweepState:
    """Make the sweep's folder or open it, and take its lease.

    Args:
        began: monotonic time at which this attempt began.

    Raises:
        UserError: the folder holds something else, or another process runs the sweep.
    """
    check_folder(sweep)  # again, because preparing the sentences may have taken hours
    with writing(sweep.folder):
        sweep.folder.mkdir(parents=True, exist_ok=True)
        start = attempts.claim(sweep.folder)
        for name, text in storage.dump_sweep(sweep).items():
            write_text(sweep.folder / name, text)
        stop_file.create(sweep.folder)
    state = SweepState(sweep, Lease(sweep.folder, start), signals, began)
    state.progress.state, state.progress.reason = "running", None
    state.progress.data = data_fingerprint(sweep)
    if state.ended_by is not None:
        print(printable(f"{sweep.folder}: has already ended: {state.ended_by}; changes of stop have no effect"))
    return state


def end(state: SweepState, outcome: Literal["finished", "interrupted", "failed"], reason: str | None) -> None:
    """Record how the sweep ended, and write its report."""
    if state.lease.lost:
        return
    state.progress.state, state.progress.reason = outcome, reason
    state.save()
    if state.trials:
        page: Path | str = state.folder / "sweep.html"
        try:
            write_report(state.folder)
        except UserError as error:  # a trial's records are damaged
            page = f"no report: {error}"
        print(printable(f"{state.folder}: {outcome}, {console.counts(state)}; {page}"))
        outcomes = state.outcomes()
        if outcomes:
            print(printable(console.best_trial(state.sweep.config.objective, outcomes)))


def _place(state: SweepState, placement: Placement) -> None:
    # Only now: the folder holds the sweep as it was asked for, so that it resumes on other nodes too.
    state.sweep = fitted(state.sweep, placement)
    state.progress.slots, state.progress.nodes = placement.slots, placement.nodes
    line = (
        f"{state.folder}: {counted(state.sweep.trials, 'trial')}, {placement.slots} at a time, on"
        f" {counted(len(placement.nodes), 'node')} of {counted(placement.total_cpus, 'CPU')} and"
        f" {counted(placement.total_gpus, 'GPU')} in all"
    )
    print(printable(line))
    warning = checks.warn_of_repeats(state.sweep)
    if warning is not None:
        print(f"distvae: WARNING {warning}", file=sys.stderr)


class _Watched:
    """Ends this process when Ray has died, because the main thread would wait for it forever."""

    def __init__(self, folder: Path, scratch: Path):
        self._folder, self._scratch = folder, scratch
        self._save: Callable[[str], None] = lambda reason: None

    def opened(self, state: SweepState) -> None:
        """From now on, save the sweep before the process ends."""
        self._save = lambda reason: _end_interrupted(state, reason)

    def give_up(self, lost: str) -> NoReturn:
        reason = f"Ray's {lost} has ended"
        with contextlib.suppress(Exception):
            self._save(reason)
        print(f"{self._folder}: {reason}; rerun the same command to resume", file=sys.stderr, flush=True)
        cluster.kill_descendants()
        shutil.rmtree(self._scratch, ignore_errors=True)
        os._exit(INTERRUPTED)


def _end_interrupted(state: SweepState, reason: str) -> None:
    state.interrupted = True
    for trial in state.trials.values():
        trial.state = "waiting" if trial.state == "running" else trial.state
    end(state, "interrupted", reason)
    state.lease.release()
