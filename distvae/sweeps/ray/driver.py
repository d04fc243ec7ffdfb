"""Runs a sweep: its pretraining, its trials by Ray Tune, its finalists, its report."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import pickletools
import shutil
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import ray
from ray import tune
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter
from tqdm import tqdm

from distvae.config.schema import Config
from distvae.data import corpus
from distvae.runs import attempts
from distvae.runs.attempts import Lease, SupersededError
from distvae.runs.tracking import read_metrics
from distvae.sweeps import sweep as sweeps
from distvae.sweeps.account import said
from distvae.sweeps.ray.search import scheduler, searcher
from distvae.sweeps.ray.trial import STOP, gpus_of, pretrain, run_process, run_trial, score, trainer, trial_number
from distvae.sweeps.report import write_hparams, write_report
from distvae.sweeps.sweep import Outcome, Sweep, Trial
from distvae.system.cores import usable_cores
from distvae.system.errors import UserError, printable
from distvae.system.files import read_json, write_json, write_text, writing
from distvae.system.signals import INTERRUPTED, InterruptedRun, asking

# Seconds that trials have to save themselves when a sweep is interrupted: Slurm may give 30 to all of it (`KillWait`).
_TO_SAVE = 20.0

# Seconds of a sweep's time that a driver that is killed leaves uncounted, at most.
_UNCOUNTED = 60.0

# What Tune saves of a start, whose time stands for the braces, by how trials are chosen.
_STATE = {
    "random": ("experiment_state-{}.json", "basic-variant-state-{}.json"),
    "optuna": ("experiment_state-{}.json", "search_gen_state-{}.json", "searcher-state-{}.pkl"),
}


@dataclass(frozen=True)
class Places:
    """Where a sweep's trials can run."""

    gpus: float  # that each process of a trial gets
    slots: int  # trials side by side
    nodes: tuple[str, ...]
    cpus_in_all: float
    gpus_in_all: float


class Driver:
    """Runs a sweep in its folder, or goes on with it.

    Args:
        scratch: a temporary folder, see ``sweeps.ray.scratch``.
    """

    current: Driver | None = None  # what Tune's callbacks find again after a restart

    def __init__(self, sweep: Sweep, scratch: Path):
        self.sweep, self.folder, self.scratch = sweep, sweep.folder, scratch
        self.lease: Lease | None = None
        self.asked: str | None = None  # the signal that asked to stop
        self.over: str | None = None  # why the sweep ends before its trials have
        self.called: float | None = None  # when trials were told to save themselves
        self.interrupted = False  # Tune has been told to save its state and end
        self.trials: dict[int, Trial] = {}
        self.running: set[int] = set()
        self._part = ""  # of the sweep's time, that passes
        self._counted = self._saved = 0.0  # until when it has been added up, and saved
        self._read: dict[int, Outcome | None] = {}  # what trials have come to
        self._tune_handler = None
        self._closing = threading.Event()  # Ray is about to end, as it should
        self._bar: tqdm | None = None

    def run(self) -> int:
        """The whole sweep. Returns the program's exit code.

        Raises:
            UserError: bad input; its pretraining failed.
            InterruptedRun: a signal asked to stop.
        """
        self._began = time.monotonic()  # what Ray and the sentences take is the sweep's time too
        self._look()
        try:
            Driver.current = self
            self._install_signals()
            # What goes wrong in a trial is told in a line here, and at length in its log.
            for name in ("ray.tune", "ray.train"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
            self._connect()
            self._install_signals()  # again, for Ray has taken them
            # Bad input leaves no folder that a mended sweep would find taken.
            places = self._fit()
            self._prepare()
            self._open()
            return self._go_on(places)
        finally:
            self._closing.set()
            ray.shutdown()
            if self.lease is not None:
                self.lease.release()

    def _go_on(self, places: Places) -> int:
        """The sweep in its folder, from where it stands."""
        self.progress.starts += 1
        self._before = self.progress.seconds
        self.progress.begun = self.progress.begun or time.time() - self._elapsed()
        try:
            self._take_places(places)
            self._pretrain()
            self._tune()
            self.progress.ended_by = self.over
            unscored = self._score_finalists()
            self._end(
                "finished" if self._succeeded else "failed", "; ".join(filter(None, [self.over, *unscored])) or None
            )
        except InterruptedRun as interrupted:
            self._end("interrupted", str(interrupted))
            raise
        except SupersededError:
            raise
        except BaseException as error:
            self._end("failed", str(error))
            raise
        return 0 if self._succeeded else 1

    @property
    def _succeeded(self) -> bool:
        return any(trial.well for trial in self.trials.values())

    # -- Begin ---------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """See that the sweep can begin in its folder, or go on there."""
        if not self.folder.exists():
            return
        try:
            empty = not any(self.folder.iterdir())
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be a sweep's folder: {error.strerror}") from None
        if not empty and not sweeps.is_sweeps(self.folder):
            raise UserError(f"{self.folder}: is not empty, and no sweep wrote what it holds; name another run=FOLDER")
        # A start that was killed as it took the folder may not have written both.
        if all((self.folder / name).exists() for name in ("sweep.yaml", "base.yaml")):
            differing = sweeps.differences(sweeps.open_sweep(self.folder), self.sweep)
            if differing:
                raise UserError(f"{self.folder}: holds another sweep: {', '.join(differing)}; name another run=FOLDER")
            known, now = sweeps.load_progress(self.folder).data, self._data()
            if known not in (None, now):
                raise UserError(
                    f"{self.folder}: its trials have other sentences ({known}) than data.path names now ({now}); name"
                    f" another run=FOLDER, or print its trials by distvae sweep-report {self.folder}"
                )
        saved = self.folder / "tune"
        if saved.exists() and saved.stat().st_uid != os.geteuid():
            raise UserError(f"{saved}: is another user's; what Tune saves is read by pickle, which can run code")

    def _data(self) -> str | None:
        """Fingerprint of the sentences of all trials; None where trials have different ones."""
        if any(key.startswith("data.") for key in self.sweep.config.space):
            return None
        return corpus.fingerprint(self.sweep.config_of({}, self.folder).data)

    def _open(self) -> None:
        """Make the sweep's folder, and become the one that runs it."""
        self._look()  # again, for the sentences may have taken hours
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            start = attempts.claim(self.folder)
            for name, text in sweeps.dump_sweep(self.sweep).items():
                write_text(self.folder / name, text)
            (self.folder / STOP).write_text("", encoding="ascii")
        self.lease = Lease(self.folder, start)
        self.progress = sweeps.load_progress(self.folder)
        self.trials = {trial.number: trial for trial in sweeps.load_trials(self.folder)}
        self.progress.state, self.progress.reason = "running", None
        self.progress.data = self._data()
        self.over = self.progress.ended_by
        if self.over is not None:
            over = f"{self.folder}: had ended before its trials: {self.over}; that stays, whatever stop says now"
            print(printable(over))

    def _install_signals(self) -> None:
        for number in asking():
            signal.signal(number, self._take)

    def _take(self, number: int, frame) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT and self.asked == name:
            raise KeyboardInterrupt(name)  # asked twice
        self.asked = self.asked or name

    def _connect(self) -> None:
        """Join the cluster that RAY_ADDRESS names, or make one of this machine."""
        if os.environ.get("RAY_ADDRESS"):
            ray.init(log_to_driver=False, logging_level="ERROR")
        else:
            # Of its own, so that two sweeps on a machine do not meet. Ray lets everyone write to its folder, so that
            # lies within one that nobody else may enter.
            context = ray.init(
                address="local",
                num_cpus=usable_cores(),
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                dashboard_port=_free_port(),
                object_store_memory=200 * 2**20,
                log_to_driver=False,
                logging_level="ERROR",
                _temp_dir=str(self.scratch / "ray"),
            )
            token = os.environ["RAY_AUTH_TOKEN_PATH"]
            print(f"Ray's dashboard: http://{context.dashboard_url}, which asks for the token in {token}", flush=True)
            RayWatch(self._give_up, self._closing).start()

    def _give_up(self, lost: str) -> NoReturn:
        """End the process where a part of Ray has died, for which the main thread would wait for good. What trials have
        saved is there."""
        reason = f"Ray's {lost} has ended"
        with contextlib.suppress(Exception):
            if self.lease is not None:
                self.interrupted = True  # what Tune says of its trials now is no end of theirs
                for trial in self.trials.values():
                    trial.state = "waiting" if trial.state == "running" else trial.state
                self._end("interrupted", reason)
                self.lease.release()
        print(f"{self.folder}: {reason}; rerun the same command to resume", file=sys.stderr, flush=True)
        for process in _descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        shutil.rmtree(self.scratch, ignore_errors=True)
        os._exit(INTERRUPTED)

    def _fit(self) -> Places:
        """Fit what each trial gets to what the nodes have.

        Raises:
            UserError: no node has it.
        """
        nodes = [node for node in ray.nodes() if node["Alive"]]
        settings = self.sweep.config.trial
        most = {name: max(node["Resources"].get(name, 0) for node in nodes) for name in ("CPU", "GPU")}
        gpus = (1.0 if most["GPU"] else 0.0) if settings.gpus is None else settings.gpus
        for name, wanted in (("CPU", settings.cpus), ("GPU", gpus)):
            if wanted > most[name]:
                raise UserError(
                    f"trial.{name.lower()}s = {wanted:g}: no node has so many {name}s, {most[name]:g} at most"
                )
        if settings.workers > 1 and 0 < gpus < 1:
            raise UserError(f"trial.gpus = {gpus:g}: several processes of a trial cannot share a GPU; give each 1")
        room = sum(_places(node["Resources"], settings.cpus, gpus) for node in nodes)
        slots = room // settings.workers
        if slots == 0:
            raise UserError(f"trial.workers = {settings.workers}: the nodes have room for {room} processes in all")
        return Places(
            gpus,
            slots=min(slots, self.sweep.config.max_concurrent or slots, self.sweep.trials),
            nodes=tuple(sorted(node["NodeManagerHostname"] for node in nodes)),
            cpus_in_all=sum(node["Resources"].get("CPU", 0) for node in nodes),
            gpus_in_all=sum(node["Resources"].get("GPU", 0) for node in nodes),
        )

    def _take_places(self, places: Places) -> None:
        trial = replace(self.sweep.config.trial, gpus=places.gpus)
        self.sweep = replace(self.sweep, config=replace(self.sweep.config, trial=trial))
        self.progress.slots, self.progress.nodes = places.slots, places.nodes
        line = (
            f"{self.folder}: {self.sweep.trials} trials, {places.slots} at a time, on {len(places.nodes)} nodes of"
            f" {places.cpus_in_all:g} CPUs and {places.gpus_in_all:g} GPUs in all"
        )
        print(printable(line))
        warning = sweeps.warn_of_repeats(self.sweep)
        if warning is not None:
            print(f"distvae: WARNING {warning}", file=sys.stderr)

    def _prepare(self) -> None:
        """See that the sentences are there, for all trials."""
        for data in dict.fromkeys(self.sweep.config_of(values, self.folder).data for values in self.sweep.samples()):
            corpus.prepare(data, progress=sys.stderr.isatty())

    # -- Pretraining ---------------------------------------------------------------------------------------------------

    def _pretrain(self) -> None:
        """Train what several trials share, each once."""
        wanted = self.sweep.pretrainings()
        waiting = {name: config for name, config in wanted.items() if not _has_ended(config)}
        if waiting:
            print(f"pretraining for all trials: {', '.join(waiting)}")
            with self._timed("pretraining_seconds"):
                if self.sweep.config.trial.workers > 1:
                    for name, config in waiting.items():
                        self._pretrain_in_processes(name, config)
                else:
                    self._pretrain_side_by_side(waiting)
            self._save()
        self.shared = frozenset(name for name, config in wanted.items() if _has_ended(config))

    def _pretrain_side_by_side(self, waiting: dict[str, Config]) -> None:
        settings = self.sweep.config.trial
        remote = ray.remote(pretrain).options(
            num_cpus=settings.cpus, num_gpus=gpus_of(self.sweep), max_retries=self.sweep.config.max_restarts
        )
        tasks = {remote.remote(config, self.sweep, os.getcwd()): name for name, config in waiting.items()}
        seen = dict.fromkeys(waiting, 0)
        while tasks:
            done, _ = ray.wait(list(tasks), timeout=1.0)
            self._count_time()
            for name, config in waiting.items():
                seen[name] = _show_epochs(name, Path(config.run), seen[name])
            for task in done:
                name = tasks.pop(task)
                try:
                    failure = ray.get(task)
                except ray.exceptions.RayError as error:
                    failure = _why(error)
                if failure is not None and self.asked is None:
                    self._tell_failed(name, failure)
            self.hear()
            if self.asked is not None:
                self._call_to_save()
                if tasks:
                    ray.wait(list(tasks), num_returns=len(tasks), timeout=_TO_SAVE)
                raise InterruptedRun(f"{self.folder}: interrupted by {self.asked} while pretraining")

    def _tell_failed(self, name: str, failure: str) -> None:
        warning = f"distvae: WARNING the pretraining {name} failed, and its trials begin by their own: {failure}"
        print(printable(warning), flush=True)

    def _pretrain_in_processes(self, name: str, config: Config) -> None:
        work = functools.partial(run_process, sweep=self.sweep, config=config, number=-1, where=os.getcwd())
        run, seen = Path(config.run), 0
        done = _in_thread(trainer(self.sweep, work, f"pretraining-{name}-{time.time_ns()}", []).fit)
        while not done.done():
            wait([done], timeout=1.0)
            self._count_time()
            seen = _show_epochs(name, run, seen)
            self.hear()
            if self.asked is not None:
                self._call_to_save()
                # Its processes end with Ray alone.
                while _says_it_runs(run) and time.monotonic() - self.called < _TO_SAVE:
                    time.sleep(0.5)
                raise InterruptedRun(f"{self.folder}: interrupted by {self.asked} while pretraining")
        try:
            done.result()
        except TrainingFailedError as error:
            self._tell_failed(name, _why(error))

    # -- Trials --------------------------------------------------------------------------------------------------------

    def _tune(self) -> None:
        settings = self.sweep.config.trial

        def trial(choice):
            run_trial(choice, sweep, shared, where)

        sweep, shared, where = self.sweep, self.shared, os.getcwd()
        # Of several processes, the first only starts the others; but it has to ask for something.
        resources = {"CPU": settings.cpus, "GPU": gpus_of(self.sweep)} if settings.workers == 1 else {"memory": 1}
        tuner = self._tuner(tune.with_resources(trial, resources))
        with tqdm(
            total=self.sweep.trials, desc="trials", unit=" trials", disable=not sys.stderr.isatty(), dynamic_ncols=True
        ) as self._bar:
            self._bar.update(sum(trial.ended for trial in self.trials.values()))
            with self._timed("trial_seconds"):
                tuner.fit()
        self.lease.check()
        if self.interrupted:
            for number in self.running:
                self.trials[number].state = "waiting"
            raise InterruptedRun(f"{self.folder}: interrupted by {self.asked}, {self._counts()}")
        self._save()

    def _tuner(self, trainable) -> tune.Tuner:
        config, objective = self.sweep.config, self.sweep.config.objective
        saved = self.folder / "tune"
        if _drop_torn(saved, _STATE[config.search]):
            return tune.Tuner.restore(str(saved), trainable=trainable, resume_unfinished=True)
        # Nothing that Tune knew of its trials has come down: they begin anew, and those with a folder go on in it.
        shutil.rmtree(saved, ignore_errors=True)
        saved.mkdir()
        search = searcher(self.sweep)
        if search:
            self.trials.clear()  # it may draw others
        # Trials that are known beforehand stand on a grid.
        space = None if search else {"values": tune.grid_search(self.sweep.points())}
        return tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                metric=None if objective.second else "objective",
                mode=None if objective.second else objective.mode,
                search_alg=Bounded(search, max_concurrent=self.room) if search else Grid(),
                scheduler=scheduler(self.sweep),
                num_samples=self.sweep.trials if search else 1,
                # Several processes of a trial that was ended may outlast the time that reuse would wait for them.
                reuse_actors=config.trial.workers == 1,
                trial_name_creator=trial_name,
                trial_dirname_creator=trial_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(self.folder),
                stop=Limits(),
                callbacks=[Reporter()],
                failure_config=tune.FailureConfig(max_failures=config.max_restarts),
                verbose=0,
            ),
        )

    @property
    def room(self) -> int:
        """For so many trials at once; 0: for all that find some."""
        # A searcher should not choose before there is room, and several processes of a trial find theirs only then.
        if self.sweep.config.search == "optuna" or self.sweep.config.trial.workers > 1:
            return self.progress.slots
        return self.sweep.config.max_concurrent or 0

    def hear(self) -> None:
        """See what has come in from outside."""
        if self._tune_handler is None:
            # Tune has taken this signal; it saves its state and ends when it gets it.
            handler = signal.getsignal(signal.SIGUSR1)
            if handler != self._take:
                self._tune_handler = handler
                signal.signal(signal.SIGUSR1, self._take)
        limits = self.sweep.config.stop
        if limits.hours is not None and self._elapsed() > limits.hours * 3600:
            self.over = self.over or f"stop.hours = {limits.hours:g} have passed"
        failed = sum(trial.state == "failed" for trial in self.trials.values())
        if limits.failed is not None and failed >= limits.failed:
            self.over = self.over or f"{failed} trials have failed, stop.failed = {limits.failed}"

    def follow(self, found: list) -> None:
        """Take over how Tune's trials stand; pass a signal on."""
        if self.interrupted:
            return  # Tune ends its trials now, which is no end of theirs
        self._count_time()
        changed = False
        for one in found:
            number = trial_number(one.trial_id, one.config)
            trial = self.trials.setdefault(number, Trial(number, one.config["values"]))
            state, reason = self._state(one)
            if trial.ended or (trial.state, trial.reason) == (state, reason):
                continue
            changed = True
            if state == "running":
                trial.begun = trial.begun or time.time()
                trial.starts += 1
                self.running.add(number)
            else:
                self.running.discard(number)
            trial.values = one.config["values"]
            trial.node = (one.last_result or {}).get("node", trial.node)
            trial.state, trial.reason = state, reason
            if trial.ended:
                try:
                    write_hparams(self.folder, self.sweep, trial)
                except UserError as error:  # its records are damaged, and it has failed for that
                    print(f"distvae: WARNING {error}", file=sys.stderr)
                self._tell(trial)
        if changed:
            self._save()
        if self.asked is not None or self.lease.lost:
            self._call_to_save()
            running = [number for number in self.running if _runs(self.folder, number)]
            if self.lease.lost or not running or time.monotonic() - self.called > _TO_SAVE:
                self.interrupted = True
                self._tune_handler(signal.SIGUSR1, None)

    def _state(self, one) -> tuple[str, str | None]:
        told = one.last_result or {}
        if one.status == "RUNNING":
            return "running", None
        if one.status == "TERMINATED":
            if told.get("failed"):
                return "failed", told["failed"]
            if told.get("ended"):
                return "finished", None
            return "stopped", self.over or f"ended by {self.sweep.config.scheduler.name}, for others do better"
        if one.status == "ERROR":  # Tune sets one that it starts again back to PENDING within the same step
            return "failed", _why(one.get_error())
        return "waiting", None

    def _call_to_save(self) -> None:
        """Have running trials save themselves, and wait for what comes then."""
        if self.called is None and not self.lease.lost:
            self.called = time.monotonic()
            (self.folder / STOP).write_text(f"{self.asked}\n", encoding="ascii")

    def _tell(self, trial: Trial) -> None:
        """A line of a trial that has ended, and of how the sweep stands."""
        outcomes = self._outcomes()
        found = outcomes.get(trial.number)
        values = " ".join(f"{key}={said(value)}" for key, value in trial.values.items())
        line = f"trial {trial.number:>3} {trial.state}"
        if trial.reason is not None:
            line += f" ({trial.reason})"
        if found is not None:
            line += f", NLL {found.nll:.2f} KL {found.kl:.2f} MI {found.mutual_information:.2f} AU {found.active_units}"
            line += f" latent {found.latent}"
        line += f", {values}, after {timedelta(seconds=round(trial.seconds))}; {self._counts()}"
        if outcomes:
            line += f"; {self._ranking(outcomes)}"
        line += self._left()
        tqdm.write(printable(line), file=sys.stdout)
        sys.stdout.flush()
        self._bar.update(1)

    def _counts(self) -> str:
        states = [trial.state for trial in self.trials.values()]
        done = sum(trial.well for trial in self.trials.values())
        return f"{done} of {self.sweep.trials} done, {states.count('running')} running, {states.count('failed')} failed"

    def _left(self) -> str:
        ended = [trial.seconds for trial in self.trials.values() if trial.ended]
        left = self.sweep.trials - len(ended)
        if not left:
            return ""
        begun = sum(trial.seconds for trial in self.trials.values() if not trial.ended)
        seconds = max(sum(ended) / len(ended) * left - begun, 0.0) / max(self.progress.slots, 1)
        return f"; about {timedelta(seconds=round(seconds))} left"

    def _outcomes(self) -> dict[int, Outcome]:
        """What the trials come to that have ended well: each is read once, for nothing changes it any more."""
        for number, trial in self.trials.items():
            runs = sweeps.generations(self.folder, number) if trial.well and number not in self._read else []
            if runs:
                config = self.sweep.config_of(trial.values, runs[-1].run)
                self._read[number] = sweeps.outcome(config, sweeps.history(self.folder, runs[-1].run))
        return {number: found for number, found in self._read.items() if found is not None}

    # -- End -----------------------------------------------------------------------------------------------------------

    def _score_finalists(self) -> list[str]:
        """Score the best trials again, with more importance samples. Returns which could not be, and why."""
        config = self.sweep.config
        outcomes = self._outcomes()
        if config.objective.second is None:
            best = sweeps.rank(config.objective, outcomes)[: config.finalists.count]
        else:
            best = sweeps.front(config.objective, outcomes)[: config.finalists.count]
        folder = self.folder / "finalists"
        remote = ray.remote(score).options(
            num_cpus=config.trial.cpus, num_gpus=gpus_of(self.sweep), max_retries=config.max_restarts
        )
        tasks, unscored = {}, []
        folder.mkdir(exist_ok=True)
        for path in folder.glob("*.json"):
            if not _is_scored(path, config.finalists.importance_samples):
                path.unlink()
        for number in best:
            run = sweeps.generations(self.folder, number)[-1].run
            if not (folder / f"{number:04d}.json").exists() and (run / "best").is_dir():
                tasks[remote.remote(run, config.finalists.importance_samples, config.trial.threads, os.getcwd())] = (
                    number
                )
        if tasks:
            print(f"scoring finalists with K = {config.finalists.importance_samples}: {', '.join(map(str, best))}")
        with self._timed("finalist_seconds"):
            while tasks:
                done, _ = ray.wait(list(tasks), timeout=1.0)
                self._count_time()
                for task in done:
                    number = tasks.pop(task)
                    try:
                        write_json(folder / f"{number:04d}.json", ray.get(task))
                    except ray.exceptions.RayError as error:
                        unscored.append(f"finalist {number} could not be scored: {_why(error)}")
                        warning = f"distvae: WARNING {unscored[-1]}; the same command tries again"
                        print(printable(warning), flush=True)
                if self.asked is not None:
                    raise InterruptedRun(f"{self.folder}: interrupted by {self.asked} while scoring finalists")
        return unscored

    def _end(self, state: str, reason: str | None) -> None:
        if self.lease.lost:
            return
        self.progress.state, self.progress.reason = state, reason
        self._save()
        if self.trials:
            page: Path | str = self.folder / "sweep.html"
            try:
                write_report(self.folder)
            except UserError as error:  # a trial's records are damaged
                page = f"no report: {error}"
            print(printable(f"{self.folder}: {state}, {self._counts()}; {page}"))
            outcomes = self._outcomes()
            if outcomes:
                print(printable(self._ranking(outcomes)))

    def _ranking(self, outcomes: dict[int, Outcome]) -> str:
        """The best trial, and why that is not the one with the best metric."""
        objective = self.sweep.config.objective
        best = sweeps.rank(objective, outcomes)[0]
        short = outcomes[best].shortcomings(objective)
        line = f"best: trial {best}, {sweeps.NAMES[objective.metric]} {getattr(outcomes[best], objective.metric):.2f}"
        line += f", though {short}" if short else ""
        why = sweeps.why_not_best(objective, outcomes)
        return f"{line}; {why}" if why else line

    def _elapsed(self) -> float:
        return self._before + time.monotonic() - self._began

    @contextlib.contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        """Within, the time that passes is that part's of the sweep."""
        self._part, self._counted = part, time.monotonic()
        try:
            yield
        finally:
            self._add_time()

    def _count_time(self) -> None:
        """Add up the time since the last call, and see that little of it is lost if this process is."""
        self._add_time()
        if self._counted - self._saved >= _UNCOUNTED:
            self._save()

    def _add_time(self) -> None:
        now = time.monotonic()
        passed = now - self._counted
        self._counted = now
        setattr(self.progress, self._part, getattr(self.progress, self._part) + passed)
        if self._part == "trial_seconds":
            self.progress.place_seconds += passed * self.progress.slots
            for number in self.running:
                self.trials[number].seconds += passed

    def _save(self) -> None:
        self._saved = time.monotonic()
        self.lease.check()
        self.progress.seconds = self._elapsed()
        with writing(self.folder):
            sweeps.save_progress(self.folder, self.progress)
            sweeps.save_trials(self.folder, [self.trials[number] for number in sorted(self.trials)])


class RayWatch(threading.Thread):
    """Sees whether Ray's processes live, of a cluster that this process started.

    Args:
        give_up: called with the name of one that has died.
        closing: set before Ray is shut down.
    """

    NAMES = ("gcs_server", "raylet")

    def __init__(self, give_up: Callable[[str], None], closing: threading.Event):
        super().__init__(name="Ray watch", daemon=True)
        self._give_up, self._closing = give_up, closing
        found = {process: attempts.living(process) for process in _descendants()}
        self._processes = {process: one for process, one in found.items() if one is not None and one[0] in self.NAMES}

    def run(self) -> None:
        while not self._closing.wait(1.0):
            for process, one in self._processes.items():
                if attempts.living(process) != one and not self._closing.is_set():
                    self._give_up(one[0])
                    return


def _descendants() -> set[int]:
    """The living processes that this one started, or that those did."""
    every = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(PermissionError):  # another user's
            every[int(path.name)] = attempts.living(int(path.name))
    found: set[int] = set()
    more = {os.getpid()}
    while more:
        more = {process for process, one in every.items() if one is not None and one[1] in more}
        found |= more
    return found


# -- What Tune calls ---------------------------------------------------------------------------------------------------


class _Room:
    """Has as many trials at once as the driver has room for. Tune would go on with the number that it saved, but there
    may be other nodes now, or another ``max_concurrent``."""

    @property
    def max_concurrent(self) -> int:
        return Driver.current.room

    @max_concurrent.setter
    def max_concurrent(self, value: int) -> None:
        """What Tune sets does not count."""


class Grid(_Room, BasicVariantGenerator):
    """Chooses trials that are known beforehand."""


class Bounded(_Room, ConcurrencyLimiter):
    """Has a searcher choose, while there is room."""


class Limits(tune.Stopper):
    """Ends the sweep when its driver says so; the driver outlives what Tune saves of this."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return Driver.current is not None and Driver.current.over is not None


class Reporter(tune.Callback):
    """Passes on to the driver how trials stand."""

    def on_step_begin(self, iteration: int, trials: list, **info) -> None:
        Driver.current.hear()

    def on_step_end(self, iteration: int, trials: list, **info) -> None:
        Driver.current.follow(trials)

    def on_experiment_end(self, trials: list, **info) -> None:
        Driver.current.follow(trials)


def trial_name(trial) -> str:
    """Names a trial in Tune's own folder."""
    return f"trial_{trial_number(trial.trial_id, trial.config):04d}"


# -- Helpers -----------------------------------------------------------------------------------------------------------


def _places(resources: dict[str, float], cpus: float, gpus: float) -> int:
    """How many processes of trials a node has room for. A part of a GPU is a part of one, never of two."""
    places = int(resources.get("CPU", 0) / cpus + 1e-9)
    return min(places, int(resources.get("GPU", 0)) * int(1 / gpus + 1e-9)) if gpus else places


def _drop_torn(saved: Path, names: tuple[str, ...]) -> bool:
    """Remove what Tune cannot go on from: it copies its files over themselves, those of former starts too, and a driver
    that is killed may leave a part of one. Returns whether there is something that it can go on from."""
    for path in sorted(saved.glob(names[0].format("*")), reverse=True):
        start = path.stem.rpartition("state-")[2]
        files = [saved / name.format(start) for name in names]
        if all(map(_is_whole, files)):
            return _is_whole(saved / "tuner.pkl")
        warning = f"distvae: WARNING {path}: is not whole, or not all of its start; passed over for the one before"
        print(printable(warning), file=sys.stderr)
        for file in files:
            file.unlink(missing_ok=True)
    return False


def _is_whole(path: Path) -> bool:
    """Whether a file is JSON, or else a pickle, to its end; runs nothing."""
    try:
        content = path.read_bytes()
        if path.name.startswith("experiment"):
            json.loads(content)
        else:
            deque(pickletools.genops(content), maxlen=0)
    except (FileNotFoundError, ValueError):
        return False
    return True


def _has_ended(config: Config) -> bool:
    return (Path(config.run) / "results.json").exists()


def _is_scored(path: Path, importance_samples: int) -> bool:
    """Whether a finalist's scores are by so many importance samples."""
    try:
        return {scores["scores"]["importance_samples"] for scores in read_json(path).values()} == {importance_samples}
    except (UserError, AttributeError, KeyError, TypeError):  # damaged
        return False


def _runs(folder: Path, number: int) -> bool:
    """Whether a trial's newest run says that it is running."""
    runs = sweeps.generations(folder, number)
    return bool(runs) and _says_it_runs(runs[-1].run)


def _says_it_runs(run: Path) -> bool:
    with contextlib.suppress(UserError):
        return read_json(run / "status.json")["state"] == "running"
    return False


def _in_thread(work: Callable[[], Any]) -> Future:
    """Have work done beside the main thread, which hears signals: Ray would take them from there, or block them. Nobody
    need wait for its end."""
    done: Future = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done


def _show_epochs(name: str, run: Path, seen: int) -> int:
    """Print the epochs of a run that were not seen before; returns how many there are."""
    rows = read_metrics(run)
    for row in rows[seen:]:
        print(
            f"pretraining {name}, epoch {row['epoch']}: validation RE {row['valid']['re']['mean']:.2f},"
            f" {row['train']['sentences'] / row['train']['seconds']:.0f} sentences/s",
            flush=True,
        )
    return len(rows)


def _why(error: BaseException | None) -> str:
    """The line of a traceback that says why a trial or another task of Ray's failed."""
    lines = [line.strip() for line in str(error or "").splitlines() if line.strip()]
    return lines[-1][:500] if lines else "its process ended without a word"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
