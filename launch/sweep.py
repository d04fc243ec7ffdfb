"""Runs a sweep by Ray Tune: ``python launch/sweep.py SWEEP.yaml [key=value …]``. Nothing else here imports Ray.

Trials are runs like any other, in folders of their own: what is lost with a process, a node or the whole job goes on
from there. Ray brings up processes and passes results on, Tune chooses what runs when.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import functools
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

# Before Ray is imported, which reads some of them then.
os.environ.setdefault("RAY_DEDUP_LOGS", "0")
os.environ |= {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths in configs count from where the sweep was started
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # runs keep their own records
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "20",
    "TUNE_GLOBAL_CHECKPOINT_S": "10",
    "TUNE_MAX_PENDING_TRIALS_PG": "4",
}

if __name__ == "__main__" and "RAY_ADDRESS" not in os.environ:
    # A cluster of this sweep's own gets a token of its own, in a file that nobody else can read.
    _token, _path = tempfile.mkstemp(prefix="distvae-token-")
    os.write(_token, secrets.token_hex(32).encode("ascii"))
    os.close(_token)
    atexit.register(os.unlink, _path)
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": _path}

import ray
import ray.train
from ray import tune
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import AsyncHyperBandScheduler, PopulationBasedTraining
from ray.tune.search.optuna import OptunaSearch
from rich.table import Table
from tqdm import tqdm

from distvae import checkpoint, corpus, report, starts
from distvae import sweep as sweeps
from distvae.account import said
from distvae.checkpoint import load_export
from distvae.config import Config, OptimizerConfig, flatten, load_config
from distvae.errors import PeerError, UserError, tell
from distvae.files import as_json, read_json, write_json, write_text, writing
from distvae.interruption import ENDED, INTERRUPTED, InterruptedRun, Signals
from distvae.rescoring import rescore
from distvae.runtime import Runtime, out_of_memory
from distvae.starts import Hold, OvertakenError
from distvae.sweep import Generation, Outcome, Sweep, Trial, Value
from distvae.sweep_report import write_hparams, write_report
from distvae.tracking import EpochRecord, read_metrics
from distvae.train import Caller, train

# Worse than any score.
_WORST = 1e9

# Seconds that trials have to save themselves when a sweep is interrupted: Slurm may give 30 to all of it (`KillWait`).
_TO_SAVE = 20.0

# In a sweep's folder: while it is there, its runs save themselves and stop.
_STOP = "stop"

# A job step's tasks are Ray's nodes here, not a run's processes.
_NOT_OURS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def main(arguments: list[str] | None = None) -> int:
    """The program: 0 when the sweep has ended, 2 on bad input, which gets one line, 1 when every trial has failed, 75
    when it was interrupted and can go on."""
    parser = argparse.ArgumentParser(prog="launch/sweep.py", description="Run a sweep by Ray Tune.")
    parser.add_argument("sweep", nargs="?", help="a YAML file, such as configs/sweep/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as num_samples=16 trial.gpus=0.25")
    parser.add_argument("--resume", metavar="FOLDER", help="go on with the sweep in this folder, as it says itself")
    parser.add_argument("--dry-run", action="store_true", help="print the trials and what they would take")
    parser.add_argument("--max-concurrent", type=int, metavar="N", help="trials side by side")
    options = parser.parse_intermixed_args(arguments)
    try:
        code = _attempt(options)
    except UserError as error:
        tell(error)
        code = 2
    except InterruptedRun as interrupted:
        print(f"{interrupted}; the same command goes on", file=sys.stderr)
        code = INTERRUPTED
    except KeyboardInterrupt:
        code = ENDED
    if "DISTVAE_EXIT_FILE" in os.environ:
        Path(os.environ["DISTVAE_EXIT_FILE"]).write_text(f"{code}\n", encoding="ascii")
    return code


def _attempt(options: argparse.Namespace) -> int:
    if options.resume is not None:
        if options.sweep is not None:
            raise UserError("--resume FOLDER goes on with a sweep as it says itself: give no other sweep beside it")
        sweep = sweeps.open_sweep(Path(options.resume))
    elif options.sweep is None:
        raise UserError("no sweep: launch/sweep.py SWEEP.yaml, or --resume FOLDER")
    else:
        sweep = sweeps.load_sweep(options.sweep, tuple(options.overrides))
    changes: dict[str, Any] = {"run": str(sweep.folder.absolute())}
    if options.max_concurrent is not None:
        if options.max_concurrent < 1:
            raise UserError(f"--max-concurrent {options.max_concurrent}: should be at least 1")
        changes["max_concurrent"] = options.max_concurrent
    sweep = replace(sweep, config=replace(sweep.config, **changes))
    if options.dry_run:
        show_plan(sweep)
        return 0
    return Driver(sweep).run()


def show_plan(sweep: Sweep) -> None:
    """Print what a sweep would run."""
    settings = sweep.config.trial
    shared = sweep.pretrainings()
    parts: list[Table | str] = []
    if sweep.config.search == "random":
        shown = Table("trial", *sweep.config.space, box=None)
        for number, values in enumerate(sweep.points()):
            cells = (said(values[key]) if key in values else "–" for key in sweep.config.space)
            shown.add_row(str(number), *cells)
        parts.append(shown)
    else:
        parts.append(f"{sweep.trials} trials, which Optuna chooses as results come in")
    gpus = "1 GPU if there are any" if settings.gpus is None else f"{settings.gpus:g} GPUs"
    each = "" if settings.workers == 1 else f" for each of {settings.workers} processes"
    parts.append(f"{sweep.trials} trials, each with {settings.cpus:g} CPUs and {gpus}{each}")
    if shared:
        parts.append(f"{len(shared)} pretrainings, shared by all: {', '.join(shared)}")
    report.show_parts(parts)


# -- A trial -----------------------------------------------------------------------------------------------------------


class _Ear(threading.Thread):
    """Hears when the sweep is interrupted, and has this process's run save itself."""

    def __init__(self, folder: Path, signals: Signals):
        super().__init__(name="ear", daemon=True)
        self._stop_file, self._signals, self._over = folder / _STOP, signals, threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.5):
            if self._stop_file.exists():
                self._signals.asked = "the sweep"
                return

    def __enter__(self) -> _Ear:
        self.start()
        return self

    def __exit__(self, *exception) -> None:
        self._over.set()


def run_trial(choice: dict[str, Any], sweep: Sweep, shared: frozenset[str], where: str) -> None:
    """A trial, in a process that Tune started: train, and report each epoch.

    Args:
        choice: what Tune has chosen.
        shared: fingerprints of the pretrainings that are there.
        where: the folder from which paths in configs count.
    """
    _settle(where)
    values = choice["values"]
    number = trial_number(tune.get_context().get_trial_id(), choice)
    handed = tune.get_checkpoint()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_logged(sweep.folder, f"{number:04d}"))
        origin = None if handed is None else Path(stack.enter_context(handed.as_directory()))
        run, resume = _place(sweep, number, values, origin)
        config = _trial_config(sweep, values, run, shared)
        if resume is not None:
            config = replace(config, resume=str(resume))
        if sweep.config.trial.workers == 1:
            failure = _run(sweep, config, number)
        else:
            failure = _run_in_processes(sweep, config, number)
        told = {"objective": _worst(sweep), "second": _worst(sweep, second=True), "judged_epochs": 0, "failed": failure}
        if failure is None:
            told = _told(sweep, config, run)
        tune.report(told | {"ended": True, "node": socket.gethostname()})


def trial_number(trial_id: str, choice: dict[str, Any]) -> int:
    """A trial's number: Optuna's, or the one that Tune gives to trials known beforehand."""
    return choice["number"] if "number" in choice else int(trial_id.rpartition("_")[2])


def _settle(where: str) -> None:
    os.chdir(where)
    for name in _NOT_OURS:
        os.environ.pop(name, None)


@contextlib.contextmanager
def _logged(folder: Path, name: str) -> Iterator[None]:
    """Within, what this process says goes to a file below ``logs/``."""
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


def _trial_config(sweep: Sweep, values: dict[str, Value], run: Path, shared: frozenset[str]) -> Config:
    config = sweep.config_of(values, run)
    pretraining = sweeps.pretraining_of(config, sweep.folder)
    if pretraining is None or sweeps.fingerprint(pretraining) not in shared:
        return config
    return sweep.config_of(values, run, Path(pretraining.run))


def _place(sweep: Sweep, number: int, values: dict[str, Value], origin: Path | None) -> tuple[Path, Path | None]:
    """The folder of the run that this trial goes on with, and the checkpoint that it begins from, if that is another's.

    Args:
        origin: what Tune hands over of this trial or of the one that it goes on from; None: nothing.
    """
    runs = sweeps.generations(sweep.folder, number) or [Generation(sweep.folder / "trials" / f"{number:04d}")]
    last = runs[-1]
    told = None if origin is None else read_json(origin / "origin.json")
    if told is None or told["trial"] == number:
        if last.parent is None:
            _drop_stale(sweep, last.run, values)
        return last.run, None
    if last.parent is None or (last.parent.name, last.step, last.values) != (told["run"], told["step"], values):
        run = runs[0].run.with_name(f"{runs[0].run.name}.{len(runs)}")
        last = Generation(run, sweep.folder / "trials" / told["run"], told["step"], values)
        shutil.rmtree(run, ignore_errors=True)  # cut short as it began
        sweeps.save_lineage(last)
    if checkpoint.list_checkpoints(last.run):
        return last.run, None
    return last.run, origin / "checkpoint"


def _drop_stale(sweep: Sweep, run: Path, values: dict[str, Value]) -> None:
    """Remove the run of a trial that Tune no longer knows: it was chosen after the state was saved that Tune went on
    from."""
    if (run / "config.yaml").exists():
        there = dict(flatten(load_config(run / "config.yaml")))
        here = dict(flatten(sweep.config_of(values, run)))
        if any(there[key] != here[key] for key in sweep.config.space):
            shutil.rmtree(run)


def _run(sweep: Sweep, config: Config, number: int) -> str | None:
    """Train in this process. Returns why it failed, if it would fail again."""
    run = Path(config.run)
    pbt = sweep.config.scheduler.name == "pbt"

    def after_epoch(record: EpochRecord) -> None:
        if record.stage != "train":
            return
        try:
            if sweep.config.trial.workers > 1:  # each of them reports, and the first is heard
                ray.train.report(_told(sweep, config, run) if ray.train.get_context().get_world_rank() == 0 else {})
            elif pbt:
                _report_with_checkpoint(sweep, config, number, run)
            else:
                tune.report(_told(sweep, config, run))
        except SystemExit:  # Tune has ended the trial
            raise InterruptedRun(f"{run}: ended by the sweep") from None

    caller = Caller(
        after_epoch,
        waits=pbt,
        # The sweep's folder may have been moved; and what population-based training has changed.
        may_change=frozenset({"pretrained"} | (set(sweep.config.space) if config.resume != "auto" else set())),
        overtakes=True,  # Tune starts a trial when the former process is over
    )
    signals = Signals()
    try:
        with _Ear(sweep.folder, signals):
            train(config, signals, caller)
    except InterruptedRun:
        if signals.asked is None:
            sys.exit(0)
        _wait_for_the_end()
    except (OvertakenError, PeerError):
        raise
    except UserError as error:
        return str(error)
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return f"out of memory: {error}".splitlines()[0]
    return None


def _wait_for_the_end() -> NoReturn:
    """All is saved: the process is ended from outside, and its trial stays one that goes on."""
    while True:
        time.sleep(60)


def _told(sweep: Sweep, config: Config, run: Path) -> dict[str, Any]:
    """What Tune is told of a trial, of which there are records."""
    rows = sweeps.history(sweep.folder, run)
    found = sweeps.outcome(config, rows)
    second = sweep.config.objective.second
    return {
        "objective": sweeps.score(sweep.config.objective, found),
        "second": None if second is None else float(getattr(found, second)),
        "judged_epochs": sweeps.judged_epochs(config, rows),
        "epoch": rows[-1]["epoch"],
        **{name: getattr(found, name) for name in sweeps.METRICS},
        "node": socket.gethostname(),
    }


def _worst(sweep: Sweep, second: bool = False) -> float:
    objective = sweep.config.objective
    mode = sweeps.METRICS[objective.second or objective.metric] if second else objective.mode
    return _WORST if mode == "min" else -_WORST


def _report_with_checkpoint(sweep: Sweep, config: Config, number: int, run: Path) -> None:
    """Tell Tune of an epoch, and hand it the checkpoint from which this or another trial may go on."""
    newest = checkpoint.newest_checkpoint(run)
    folder = Path(tempfile.mkdtemp(dir=sweep.folder / "tune"))
    try:
        shutil.copytree(newest, folder / "checkpoint", copy_function=os.link)
        step = checkpoint.load_state(newest).step
        origin = {"trial": number, "run": run.name, "step": step}
        (folder / "origin.json").write_text(as_json(origin), encoding="utf-8")
        tune.report(_told(sweep, config, run), checkpoint=tune.Checkpoint.from_directory(str(folder)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_in_processes(sweep: Sweep, config: Config, number: int) -> str | None:
    """Train in several processes, which may lie on several nodes. Returns why it failed, if it would fail again."""
    trainer = _trainer(
        sweep,
        functools.partial(_work, sweep=sweep, config=config, number=number, where=os.getcwd()),
        f"processes-{number:04d}-{time.time_ns()}",
        [TuneReportCallback()],
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        for failure in getattr(error, "worker_failures", {}).values():
            failure = getattr(failure, "cause", failure)
            if isinstance(failure, _WillFailAgain):
                return str(failure)
        raise
    return None


class _WillFailAgain(Exception):  # noqa: N818
    """What a worker tells of a run that failed by its own fault."""


def _work(settings: dict[str, Any], sweep: Sweep, config: Config, number: int, where: str) -> None:
    """One process of a trial of several."""
    _settle(where)
    failure = _run(sweep, config, number)
    if failure is not None:
        raise _WillFailAgain(failure)


def _trainer(sweep: Sweep, work, name: str, callbacks: list) -> TorchTrainer:
    settings = sweep.config.trial
    gpus = _gpus(sweep)
    return TorchTrainer(
        work,
        train_loop_config={},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=settings.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": settings.cpus} | ({"GPU": gpus} if gpus else {}),
        ),
        run_config=ray.train.RunConfig(name=name, storage_path=str(sweep.folder / "ray"), callbacks=callbacks),
    )


def _gpus(sweep: Sweep) -> float:
    """GPUs of each process of a trial, of a sweep that has been fitted to the cluster."""
    return sweep.config.trial.gpus or 0.0


# -- What Tune chooses by ----------------------------------------------------------------------------------------------


class Suggestions:
    """The space as Optuna draws from it: a function of an ``optuna.Trial``."""

    def __init__(self, sweep: Sweep):
        self._sweep = sweep

    def __call__(self, trial) -> dict[str, Any]:
        return {"values": self._sweep.draw(_Learnt(trial)), "number": trial.number}


class _Learnt:
    """Chance as Optuna's sampler has it."""

    def __init__(self, trial):
        self._trial = trial

    def choice(self, key: str, values: tuple[Value, ...]) -> Value:
        return self._trial.suggest_categorical(key, list(values))

    def uniform(self, key: str, low: float, high: float, log: bool) -> float:
        return self._trial.suggest_float(key, low, high, log=log)

    def integer(self, key: str, low: int, high: int) -> int:
        return self._trial.suggest_int(key, low, high)


class KeepInside:
    """Puts what population-based training has moved out of the space back to its edge."""

    def __init__(self, sweep: Sweep):
        self._space = sweep.config.space

    def __call__(self, choice: dict[str, Any]) -> dict[str, Any]:
        for key, value in choice["values"].items():
            if self._space[key].values is None:
                low, high = self._space[key].extremes
                choice["values"][key] = min(max(value, low), high)
        return choice


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


def _scheduler(sweep: Sweep):
    settings, space = sweep.config.scheduler, sweep.config.space
    if settings.name == "asha":
        longest = max(sweep.config_of(values, sweep.folder).train.max_epochs for values in _samples(sweep))
        return AsyncHyperBandScheduler(
            time_attr="judged_epochs",
            max_t=longest + 1,  # beyond all: a trial's own end is its training's
            grace_period=settings.grace_epochs,
            reduction_factor=settings.reduction_factor,
        )
    if settings.name == "pbt":
        domains = {}
        for key, dimension in space.items():
            if dimension.values is not None:
                domains[key] = list(dimension.values)
            elif dimension.integer:
                domains[key] = tune.randint(dimension.integer[0], dimension.integer[1] + 1)
            else:
                domains[key] = (tune.uniform if dimension.uniform else tune.loguniform)(*dimension.extremes)
        return PopulationBasedTraining(
            time_attr="judged_epochs",
            burn_in_period=settings.grace_epochs,
            perturbation_interval=settings.interval_epochs,
            hyperparam_mutations={"values": domains},
            quantile_fraction=settings.quantile,
            resample_probability=settings.resample_probability,
            custom_explore_fn=KeepInside(sweep),
        )
    return None


def _samples(sweep: Sweep) -> list[dict[str, Value]]:
    """The values of all trials, or where these are not known beforehand, of some that there may be."""
    return sweep.points() if sweep.config.search == "random" else sweep.some()


# -- The driver --------------------------------------------------------------------------------------------------------


class Driver:
    """Runs a sweep in its folder, or goes on with it."""

    current: Driver | None = None  # what Tune's callbacks find again after a restart

    def __init__(self, sweep: Sweep):
        self.sweep, self.folder = sweep, sweep.folder
        self.asked: str | None = None  # the signal that asked to stop
        self.over: str | None = None  # why the sweep ends before its trials have
        self.called: float | None = None  # when trials were told to save themselves
        self.interrupted = False  # Tune has been told to save its state and end
        self.trials: dict[int, Trial] = {}
        self.running: dict[int, float] = {}  # since when
        self._read: dict[int, Outcome | None] = {}  # what trials have come to
        self._tune_handler = None
        self._bar: tqdm | None = None

    def run(self) -> int:
        """The whole sweep. Returns the program's exit code.

        Raises:
            UserError: bad input; its pretraining failed.
            InterruptedRun: a signal asked to stop.
        """
        self._open()
        self.progress.starts += 1
        self.progress.begun = self.progress.begun or time.time()
        self._before, self._began = self.progress.seconds, time.monotonic()
        try:
            Driver.current = self
            self._install_signals()
            # What goes wrong in a trial is told in a line here, and at length in its log.
            for name in ("ray.tune", "ray.train"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
            self._connect()
            self._install_signals()  # again, for Ray has taken them
            self._prepare()
            self._pretrain()
            self._tune()
            self._score_finalists()
            self._end("finished" if self._succeeded else "failed", self.over)
        except InterruptedRun as interrupted:
            self._end("interrupted", str(interrupted))
            raise
        except OvertakenError:
            raise
        except BaseException as error:
            self._end("failed", str(error))
            raise
        finally:
            ray.shutdown()
            self.hold.release()
        return 0 if self._succeeded else 1

    @property
    def _succeeded(self) -> bool:
        return any(trial.well for trial in self.trials.values())

    # -- Begin ---------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Make the sweep's folder, or see that the sweep can go on in it, and become the one that runs it."""
        if (self.folder / "sweep.yaml").exists():
            differing = sweeps.differences(sweeps.open_sweep(self.folder), self.sweep)
            if differing:
                raise UserError(f"{self.folder}: holds another sweep: {', '.join(differing)}; name another run=FOLDER")
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder}: is not empty and holds no sweep; name another run=FOLDER")
        saved = self.folder / "tune"
        if saved.exists() and saved.stat().st_uid != os.geteuid():
            raise UserError(f"{saved}: is another user's; what Tune saves is read by pickle, which can run code")
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            start = starts.claim(self.folder)
            for name, text in sweeps.dump_sweep(self.sweep).items():
                write_text(self.folder / name, text)
            (self.folder / _STOP).unlink(missing_ok=True)
        self.hold = Hold(self.folder, start)
        self.progress = sweeps.load_progress(self.folder)
        self.trials = {trial.number: trial for trial in sweeps.load_trials(self.folder)}

    def _install_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._take)

    def _take(self, number: int, frame) -> None:
        name = signal.Signals(number).name
        if number == signal.SIGINT and self.asked == name:
            raise KeyboardInterrupt(name)  # asked twice
        self.asked = self.asked or name

    def _connect(self) -> None:
        """Join the cluster that RAY_ADDRESS names, or make one of this machine."""
        if "RAY_ADDRESS" in os.environ:
            ray.init(log_to_driver=False, logging_level="ERROR")
        else:
            # Of its own, so that two sweeps on a machine do not meet; its sockets' names may have some 100 characters.
            self._scratch = tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True)
            context = ray.init(
                address="local",
                num_cpus=len(os.sched_getaffinity(0)),
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                dashboard_port=_free_port(),
                object_store_memory=200 * 2**20,
                log_to_driver=False,
                logging_level="ERROR",
                _temp_dir=self._scratch.name,
            )
            token = os.environ["RAY_AUTH_TOKEN_PATH"]
            print(f"Ray's dashboard: http://{context.dashboard_url}, which asks for the token in {token}", flush=True)
        self._fit()

    def _fit(self) -> None:
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
        room = sum(
            min(
                int(node["Resources"].get("CPU", 0) / settings.cpus + 1e-9),
                int(node["Resources"].get("GPU", 0) / gpus + 1e-9) if gpus else 10**9,
            )
            for node in nodes
        )
        slots = room // settings.workers
        if slots == 0:
            raise UserError(f"trial.workers = {settings.workers}: the nodes have room for {room} processes in all")
        fitted = replace(self.sweep.config, trial=replace(settings, gpus=gpus))
        self.sweep = replace(self.sweep, config=fitted)
        slots = min(slots, self.sweep.config.max_concurrent or slots, self.sweep.trials)
        self.progress.slots, self.progress.nodes = slots, tuple(sorted(node["NodeManagerHostname"] for node in nodes))
        print(
            f"{self.folder}: {self.sweep.trials} trials, {slots} at a time, on {len(nodes)} nodes of"
            f" {sum(n['Resources'].get('CPU', 0) for n in nodes):g} CPUs and"
            f" {sum(n['Resources'].get('GPU', 0) for n in nodes):g} GPUs in all"
        )

    def _prepare(self) -> None:
        """See that the sentences are there, for all trials."""
        found = {}
        for values in _samples(self.sweep):
            data = self.sweep.config_of(values, self.folder).data
            found[repr(data)] = data
        for data in found.values():
            corpus.prepare(data, progress=sys.stderr.isatty())

    # -- Pretraining ---------------------------------------------------------------------------------------------------

    def _pretrain(self) -> None:
        """Train what several trials share, each once."""
        wanted = self.sweep.pretrainings()
        waiting = {name: config for name, config in wanted.items() if not _has_ended(config)}
        if waiting:
            print(f"pretraining for all trials: {', '.join(waiting)}")
            began = time.monotonic()
            if self.sweep.config.trial.workers > 1:
                for name, config in waiting.items():
                    self._pretrain_in_processes(name, config)
            else:
                self._pretrain_side_by_side(waiting)
            self.progress.pretraining_seconds += time.monotonic() - began
            self._save()
        self.shared = frozenset(name for name, config in wanted.items() if _has_ended(config))

    def _pretrain_side_by_side(self, waiting: dict[str, Config]) -> None:
        settings = self.sweep.config.trial
        remote = ray.remote(_pretrain).options(
            num_cpus=settings.cpus, num_gpus=_gpus(self.sweep), max_retries=self.sweep.config.max_restarts
        )
        tasks = {remote.remote(config, self.sweep, os.getcwd()): name for name, config in waiting.items()}
        seen = dict.fromkeys(waiting, 0)
        while tasks:
            done, _ = ray.wait(list(tasks), timeout=1.0)
            for name, config in waiting.items():
                seen[name] = _show_epochs(name, Path(config.run), seen[name])
            for task in done:
                name = tasks.pop(task)
                try:
                    failure = ray.get(task)
                except ray.exceptions.RayError as error:
                    failure = str(error)
                if failure is not None and self.asked is None:
                    self._tell_failed(name, failure)
            self.hear()
            if self.asked is not None:
                self._call_to_save()
                if tasks:
                    ray.wait(list(tasks), num_returns=len(tasks), timeout=_TO_SAVE)
                raise InterruptedRun(f"{self.folder}: interrupted by {self.asked} while pretraining")

    def _tell_failed(self, name: str, failure: str) -> None:
        print(
            f"distvae: WARNING the pretraining {name} failed, and its trials begin by their own: {failure}", flush=True
        )

    def _pretrain_in_processes(self, name: str, config: Config) -> None:
        work = functools.partial(_work, sweep=self.sweep, config=config, number=-1, where=os.getcwd())
        try:
            _trainer(self.sweep, work, f"pretraining-{name}-{time.time_ns()}", []).fit()
        except TrainingFailedError as error:
            self._tell_failed(name, str(error))
        _show_epochs(name, Path(config.run), 0)

    # -- Trials --------------------------------------------------------------------------------------------------------

    def _tune(self) -> None:
        began = time.monotonic()
        settings = self.sweep.config.trial

        def trial(choice):
            run_trial(choice, sweep, shared, where)

        sweep, shared, where = self.sweep, self.shared, os.getcwd()
        # Of several processes, the first only starts the others; but it has to ask for something.
        resources = {"CPU": settings.cpus, "GPU": _gpus(self.sweep)} if settings.workers == 1 else {"memory": 1}
        trainable = tune.with_resources(trial, resources)
        with tqdm(
            total=self.sweep.trials, desc="trials", unit=" trials", disable=not sys.stderr.isatty(), dynamic_ncols=True
        ) as self._bar:
            self._bar.update(sum(trial.ended for trial in self.trials.values()))
            self._tuner(trainable).fit()
        self.progress.trial_seconds += time.monotonic() - began
        self.hold.check()
        if self.interrupted:
            for number in self.running:
                self.trials[number].state = "waiting"
            raise InterruptedRun(f"{self.folder}: interrupted by {self.asked}, {self._counts()}")
        self._save()

    def _tuner(self, trainable) -> tune.Tuner:
        config, objective = self.sweep.config, self.sweep.config.objective
        saved = self.folder / "tune"
        if tune.Tuner.can_restore(str(saved)) and any(saved.glob("experiment_state-*.json")):
            return tune.Tuner.restore(str(saved), trainable=trainable, resume_unfinished=True)
        # Nothing that Tune knew of its trials has come down: they begin anew, and those with a folder go on in it.
        shutil.rmtree(saved, ignore_errors=True)
        saved.mkdir()
        search = space = None
        if config.search == "random":
            space = {"values": tune.grid_search(self.sweep.points())}
        elif objective.second is None:
            search = OptunaSearch(
                space=Suggestions(self.sweep), metric="objective", mode=objective.mode, seed=config.seed
            )
        else:
            modes = [objective.mode, sweeps.METRICS[objective.second]]
            search = OptunaSearch(
                space=Suggestions(self.sweep), metric=["objective", "second"], mode=modes, seed=config.seed
            )
        # A searcher should not choose before there is room, and several processes of a trial find theirs only then.
        bounded = config.search == "optuna" or config.trial.workers > 1
        return tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                metric=None if objective.second else "objective",
                mode=None if objective.second else objective.mode,
                search_alg=search,
                scheduler=_scheduler(self.sweep),
                num_samples=self.sweep.trials if search else 1,
                max_concurrent_trials=self.progress.slots if bounded else config.max_concurrent,
                reuse_actors=True,
                trial_name_creator=trial_name,
                trial_dirname_creator=trial_name,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(self.folder),
                stop=Limits(),
                callbacks=[Reporter()],
                failure_config=tune.FailureConfig(max_failures=config.max_restarts),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=4 if config.scheduler.name == "pbt" else None),
                verbose=0,
            ),
        )

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
                self.running[number] = time.monotonic()
            elif number in self.running:
                trial.seconds += time.monotonic() - self.running.pop(number)
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
        if self.asked is not None or self.hold.lost:
            self._call_to_save()
            running = [number for number in self.running if _runs(self.folder, number)]
            if self.hold.lost or not running or time.monotonic() - self.called > _TO_SAVE:
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
        if one.status == "ERROR" and not one.should_recover():
            return "failed", _why(one)
        return "waiting", None

    def _call_to_save(self) -> None:
        """Have running trials save themselves, and wait for what comes then."""
        if self.called is None and not self.hold.lost:
            self.called = time.monotonic()
            (self.folder / _STOP).touch()

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
        line += f", {values}, after {timedelta(seconds=round(trial.seconds))}; {self._counts()}"
        if outcomes:
            best = sweeps.rank(self.sweep.config.objective, outcomes)[0]
            line += f"; best: trial {best}, {self.sweep.config.objective.metric}"
            line += f" {getattr(outcomes[best], self.sweep.config.objective.metric):.2f}"
        line += self._left()
        tqdm.write(line, file=sys.stdout)
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
        seconds = sum(ended) / len(ended) * left / max(self.progress.slots, 1)
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

    def _score_finalists(self) -> None:
        """Score the best trials again, with more importance samples."""
        config = self.sweep.config
        outcomes = self._outcomes()
        if config.objective.second is None:
            best = sweeps.rank(config.objective, outcomes)[: config.finalists.count]
        else:
            best = sweeps.front(config.objective, outcomes)[: config.finalists.count]
        folder = self.folder / "finalists"
        remote = ray.remote(_score).options(
            num_cpus=config.trial.cpus, num_gpus=_gpus(self.sweep), max_retries=config.max_restarts
        )
        tasks = {}
        began = time.monotonic()
        folder.mkdir(exist_ok=True)
        for number in best:
            run = sweeps.generations(self.folder, number)[-1].run
            if not (folder / f"{number:04d}.json").exists() and (run / "best").is_dir():
                tasks[remote.remote(run, config.finalists.importance_samples, config.trial.threads, os.getcwd())] = (
                    number
                )
        if tasks:
            print(f"scoring finalists with K = {config.finalists.importance_samples}: {', '.join(map(str, best))}")
        while tasks:
            done, _ = ray.wait(list(tasks), timeout=1.0)
            for task in done:
                write_json(folder / f"{tasks.pop(task):04d}.json", ray.get(task))
            if self.asked is not None:
                raise InterruptedRun(f"{self.folder}: interrupted by {self.asked} while scoring finalists")
        self.progress.finalist_seconds += time.monotonic() - began

    def _end(self, state: str, reason: str | None) -> None:
        if self.hold.lost:
            return
        self.progress.state, self.progress.reason = state, reason
        self._save()
        if self.trials:
            page: Path | str = self.folder / "sweep.html"
            try:
                write_report(self.folder)
            except UserError as error:  # a trial's records are damaged
                page = f"no report: {error}"
            print(f"{self.folder}: {state}, {self._counts()}; {page}")

    def _elapsed(self) -> float:
        return self._before + time.monotonic() - self._began

    def _save(self) -> None:
        self.hold.check()
        self.progress.seconds = self._elapsed()
        with writing(self.folder):
            sweeps.save_progress(self.folder, self.progress)
            sweeps.save_trials(self.folder, [self.trials[number] for number in sorted(self.trials)])


def _has_ended(config: Config) -> bool:
    return (Path(config.run) / "results.json").exists()


def _pretrain(config: Config, sweep: Sweep, where: str) -> str | None:
    """A pretraining that trials share. Returns why it failed or was stopped."""
    _settle(where)
    signals = Signals()
    try:
        with _Ear(sweep.folder, signals):
            train(config, signals, Caller(overtakes=True))
    except (UserError, InterruptedRun) as error:
        return str(error)
    return None


def _score(run: Path, importance_samples: int, threads: int, where: str) -> dict[str, Any]:
    """A finalist's scores of validation and test sentences."""
    _settle(where)
    found = load_export(run)
    runtime = Runtime(OptimizerConfig(mixed_precision="no"), cpu_threads=threads)
    try:
        settings = replace(found.config.evaluation, importance_samples=importance_samples)
        return {
            split: report.as_dict(rescore(str(run), found, split, found.config.data, settings, runtime))
            for split in ("valid", "test")
        }
    finally:
        runtime.close()


def _runs(folder: Path, number: int) -> bool:
    """Whether a trial's newest run says that it is running."""
    runs = sweeps.generations(folder, number)
    if not runs:
        return False
    with contextlib.suppress(UserError):
        return read_json(runs[-1].run / "status.json")["state"] == "running"
    return False


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


def _why(one) -> str:
    """The line of a trial's traceback that says why it failed."""
    error = one.get_error()
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:500] if lines else "its process ended without a word"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    # As a module by its name, for what Tune saves of its classes is found again by that.
    import sweep

    sys.exit(sweep.main())
