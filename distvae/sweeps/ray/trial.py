"""A trial: a run like any other, in processes that Ray brings up.

What is lost with a process, a node or the whole job goes on from its folder.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import ray
import ray.train
from ray import tune
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.tune.integration.ray_train import TuneReportCallback

from distvae.config.load import flatten, load_config
from distvae.config.schema import Config, OptimizerConfig
from distvae.distributed.runtime import Runtime
from distvae.runs import checkpoints
from distvae.runs.attempts import SupersededError
from distvae.runs.checkpoints import load_export
from distvae.runs.rescoring import rescore
from distvae.runs.results import results_to_dict
from distvae.runs.tracking import EpochRecord
from distvae.sweeps import ranking
from distvae.sweeps.lineage import Generation, ancestry, first_trial, generations, history, save_lineage
from distvae.sweeps.pretraining import fingerprint, pretraining_of
from distvae.sweeps.ranking import is_over, judged_epochs, outcome
from distvae.sweeps.space import Value
from distvae.sweeps.specification import METRICS
from distvae.sweeps.sweep import Sweep
from distvae.system.errors import PeerError, UserError
from distvae.system.files import as_json, read_json
from distvae.system.programs import out_of_memory
from distvae.system.signals import InterruptedRun, Signals
from distvae.train import train
from distvae.training.caller import Caller

# In a sweep's folder: its runs save themselves and stop when something stands in it. It is there from the beginning and
# is written in place, for a network's file system may hide a new file for a minute, and tells what an old one holds.
STOP = "stop"

# Worse than any score.
_WORST = 1e9

# A job step's tasks are Ray's nodes here, not a run's processes.
_NOT_OURS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


class _Ear(threading.Thread):
    """Hears when the sweep is interrupted, and has this process's run save itself."""

    def __init__(self, folder: Path, signals: Signals):
        super().__init__(name="ear", daemon=True)
        self._stop_file, self._signals, self._over = folder / STOP, signals, threading.Event()

    def run(self) -> None:
        while not self._over.wait(0.5):
            with contextlib.suppress(OSError):  # of a network's file system, which may come back
                if self._stop_file.read_text(encoding="ascii"):
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
    with _logged(sweep.folder, f"{number:04d}"):
        run, resume = _place(sweep, number, values, None if handed is None else Path(handed.path))
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
    began = config
    if len(ancestry(sweep.folder, run)) > 1:
        # Its weights descend from the pretraining of the first trial, whatever its own values would pretrain.
        began = sweep.config_of(sweep.points()[first_trial(sweep.folder, run)], run)
    pretraining = pretraining_of(began, sweep.folder)
    if pretraining is None or fingerprint(pretraining) not in shared:
        return config
    return sweep.config_of(values, run, Path(pretraining.run))


def _place(sweep: Sweep, number: int, values: dict[str, Value], handed: Path | None) -> tuple[Path, Path | None]:
    """The folder of the run that this trial goes on with, and the checkpoint that it begins from, if that is another's.

    Args:
        handed: what Tune hands over of this trial or of the one that it goes on from; None: nothing.
    """
    first = sweep.folder / "trials" / f"{number:04d}"
    runs = generations(sweep.folder, number) or [Generation(first)]
    if handed is None:
        here = runs[0]
    else:
        # Of another trial Tune has the path as it was before the sweep was moved.
        handed = sweep.folder / "tune" / handed.parent.name / handed.name
        if handed.is_dir():
            told = read_json(handed / "origin.json")
            if told["trial"] != number:
                return _place_behind_another(sweep, runs, values, handed, told)
            here = next((g for g in runs if g.run.name == told["run"]), runs[-1])
        else:  # gone since the state was saved that Tune goes on from, where a later one was torn
            here = ([g for g in runs if _has(sweep, g, values)] or runs)[-1]
    _drop_later(runs, here)
    if here.parent is None and not _has(sweep, here, values):  # chosen after the state that Tune goes on from
        shutil.rmtree(here.run)
    return here.run, None


def _place_behind_another(
    sweep: Sweep, runs: list[Generation], values: dict[str, Value], handed: Path, told: dict[str, Any]
) -> tuple[Path, Path | None]:
    parent = sweep.folder / "trials" / told["run"]
    known = [g for g in runs if (g.parent, g.step, g.values) == (parent, told["step"], values)]
    if known:
        here = known[-1]
        _drop_later(runs, here)
    else:
        first = runs[0].run
        here = Generation(first.with_name(f"{first.name}.{len(runs)}"), parent, told["step"], values)
    if checkpoints.list_checkpoints(here.run):
        return here.run, None
    shutil.rmtree(here.run, ignore_errors=True)  # cut short as it began, if at all
    save_lineage(here)
    return here.run, handed / "checkpoint"


def _drop_later(runs: list[Generation], here: Generation) -> None:
    """Remove the runs behind one: Tune goes on from a state that is older than these."""
    for later in runs[runs.index(here) + 1 :]:
        shutil.rmtree(later.run)


def _has(sweep: Sweep, generation: Generation, values: dict[str, Value]) -> bool:
    """Whether a run is of these values, or has not begun."""
    if generation.parent is not None:
        return generation.values == values
    if not (generation.run / "config.yaml").exists():
        return True
    there = dict(flatten(load_config(generation.run / "config.yaml", stored=True)))
    here = dict(flatten(sweep.config_of(values, generation.run)))
    return all(there[key] == here[key] for key in sweep.config.space)


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
    except (SupersededError, PeerError):
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
    return _judgement(sweep, config, history(sweep.folder, run)) | {"node": socket.gethostname()}


def told_before(sweep: Sweep, number: int, values: dict[str, Value]) -> list[dict[str, Any]]:
    """What Tune has been told of a trial, epoch by epoch, by its records: nothing of one that is new."""
    try:
        runs = [g for g in generations(sweep.folder, number) if _has(sweep, g, values)]
        if not runs:
            return []
        rows, config = history(sweep.folder, runs[-1].run), sweep.config_of(values, runs[-1].run)
        return [_judgement(sweep, config, rows[:n]) for n, row in enumerate(rows, 1) if row["stage"] == "train"]
    except (UserError, ValueError, KeyError, TypeError):  # damaged: the trial fails of that when its turn comes
        return []


def _judgement(sweep: Sweep, config: Config, rows: list[dict[str, Any]]) -> dict[str, Any]:
    objective, found = sweep.config.objective, outcome(config, rows)
    return {
        "objective": ranking.score(objective, found),
        "second": None if objective.second is None else ranking.score(objective, found, second=True),
        "judged_epochs": judged_epochs(config, rows),
        "epoch": rows[-1]["epoch"],
        **{name: getattr(found, name) for name in METRICS},
    }


def _worst(sweep: Sweep, second: bool = False) -> float:
    objective = sweep.config.objective
    mode = objective.second_mode if second and objective.second is not None else objective.mode
    return _WORST if mode == "min" else -_WORST


def _report_with_checkpoint(sweep: Sweep, config: Config, number: int, run: Path) -> None:
    """Tell Tune of an epoch, and hand it the checkpoint from which this or another trial may go on."""
    newest = checkpoints.newest_checkpoint(run)
    folder = Path(tempfile.mkdtemp(dir=sweep.folder / "tune"))
    try:
        shutil.copytree(newest, folder / "checkpoint", copy_function=os.link)
        step = checkpoints.load_state(newest).step
        over = is_over(config, history(sweep.folder, run))
        origin = {"trial": number, "run": run.name, "step": step, "over": over}
        (folder / "origin.json").write_text(as_json(origin), encoding="utf-8")
        tune.report(_told(sweep, config, run), checkpoint=tune.Checkpoint.from_directory(str(folder)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run_in_processes(sweep: Sweep, config: Config, number: int) -> str | None:
    """Train in several processes, which may lie on several nodes. Returns why it failed, if it would fail again."""
    work = functools.partial(run_process, sweep=sweep, config=config, number=number, where=os.getcwd())
    try:
        trainer(sweep, work, f"processes-{number:04d}-{time.time_ns()}", [TuneReportCallback()]).fit()
    except TrainingFailedError as error:
        for failure in getattr(error, "worker_failures", {}).values():
            failure = getattr(failure, "cause", failure)
            if isinstance(failure, _WillFailAgain):
                return str(failure)
        raise
    return None


class _WillFailAgain(Exception):  # noqa: N818
    """What a worker tells of a run that failed by its own fault."""


def run_process(settings: dict[str, Any], sweep: Sweep, config: Config, number: int, where: str) -> None:
    """One process of a trial of several."""
    _settle(where)
    failure = _run(sweep, config, number)
    if failure is not None:
        raise _WillFailAgain(failure)


def trainer(sweep: Sweep, work: Callable, name: str, callbacks: list) -> TorchTrainer:
    """Has the processes of a trial, or of a pretraining, do their work."""
    settings = sweep.config.trial
    gpus = gpus_of(sweep)
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


def gpus_of(sweep: Sweep) -> float:
    """GPUs of each process of a trial, of a sweep that has been fitted to the cluster."""
    return sweep.config.trial.gpus or 0.0


# -- Before the trials, and after them ---------------------------------------------------------------------------------


def pretrain(config: Config, sweep: Sweep, where: str) -> str | None:
    """A pretraining that trials share. Returns why it failed or was stopped."""
    _settle(where)
    signals = Signals()
    try:
        with _Ear(sweep.folder, signals):
            train(config, signals, Caller(overtakes=True))
    except (UserError, InterruptedRun) as error:
        return str(error)
    return None


def score(run: Path, importance_samples: int, threads: int, where: str) -> dict[str, Any]:
    """A finalist's scores of validation and test sentences."""
    _settle(where)
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
