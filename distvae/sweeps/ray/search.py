"""What Tune chooses by: the space, the searcher, the scheduler."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import tune
from ray.train._internal.session import _FutureTrainingResult
from ray.tune.schedulers import AsyncHyperBandScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from distvae.sweeps.ray.trial import told_before, trial_number
from distvae.sweeps.space import Value
from distvae.sweeps.sweep import Sweep
from distvae.system.files import read_json


def searcher(sweep: Sweep) -> OptunaSearch | None:
    """Optuna; None where trials are known beforehand."""
    if sweep.config.search == "random":
        return None
    objective = sweep.config.objective
    metrics: str | list[str] = "objective"
    modes: str | list[str] = objective.mode
    if objective.second is not None:
        metrics, modes = ["objective", "second"], [objective.mode, objective.second_mode]
    return OptunaSearch(space=Suggestions(sweep), metric=metrics, mode=modes, seed=sweep.config.seed)


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


# Seconds for which the state that Tune has saved may still name a checkpoint that is no longer needed.
_UNNEEDED = 60.0


class _Remembering:
    """Has a scheduler know again, after a restart, what it was told before: Tune saves nothing of what it knows."""

    def __init__(self, sweep: Sweep, **settings: Any):
        super().__init__(**settings)
        self._sweep = sweep

    def told_before(self, trial) -> list[dict[str, Any]]:
        # Pickled with the scheduler, the sweep has the folder that it began in; Tune's trials have that of now.
        folder = Path(trial.storage.experiment_fs_path).parent
        sweep = replace(self._sweep, config=replace(self._sweep.config, run=str(folder)))
        return told_before(sweep, trial_number(trial.trial_id, trial.config), trial.config["values"])


class Halving(_Remembering, AsyncHyperBandScheduler):
    """Ends the worse trials early."""

    def on_trial_add(self, tune_controller, trial) -> None:
        super().on_trial_add(tune_controller, trial)
        for told in self.told_before(trial):
            self.on_trial_result(tune_controller, trial, told)  # what it would do has been done


class Population(_Remembering, PopulationBasedTraining):
    """Has the worse trials go on from the better ones."""

    def __init__(self, sweep: Sweep, **settings: Any):
        super().__init__(sweep, **settings)
        self._needed: dict[tuple[str, ...], float] = {}  # checkpoints in Tune's folder, and until when they were

    def on_trial_add(self, tune_controller, trial) -> None:
        super().on_trial_add(tune_controller, trial)
        state = self._trial_state[trial]
        for told in self.told_before(trial):
            now = told[self._time_attr]
            if now >= self._burn_in_period and now - state.last_perturbation_time >= self._perturbation_interval:
                self._save_trial_state(state, now, told, trial)
                state.last_perturbation_time = now

    def on_trial_result(self, tune_controller, trial, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        self._drop_unneeded(trial)
        return decision

    def _exploit(self, tune_controller, trial, trial_to_clone) -> None:
        saved = Path(self._trial_state[trial_to_clone].last_checkpoint.path)
        # The sweep may have been moved since: Tune's trials have the folder of now, its checkpoints that of then.
        origin = Path(trial.storage.experiment_fs_path, *saved.parts[-2:], "origin.json")
        # Where nothing is left to train, the copy would be ranked under values that it was never trained with.
        if not (origin.exists() and read_json(origin).get("over")):
            super()._exploit(tune_controller, trial, trial_to_clone)

    def _drop_unneeded(self, trial) -> None:
        """Remove what a trial has handed over that none goes on from any more. Tune itself would keep a number of the
        newest, however long another waits for its place with an older one."""
        now = time.monotonic()
        for other, state in self._trial_state.items():
            saved = state.last_checkpoint
            if isinstance(saved, _FutureTrainingResult):
                told = saved.resolve(block=False)
                saved = None if told is None else told.checkpoint
            for checkpoint in (other.checkpoint, saved):
                if checkpoint is not None:
                    self._needed[Path(checkpoint.path).parts[-2:]] = now
        for path in Path(trial.storage.trial_fs_path).glob("checkpoint_*"):
            if now - self._needed.setdefault(path.parts[-2:], now) > _UNNEEDED:
                shutil.rmtree(path, ignore_errors=True)


class KeepInside:
    """Puts what population-based training has moved out of the space back to its edge."""

    def __init__(self, sweep: Sweep):
        self._space = sweep.config.space

    def __call__(self, choice: dict[str, Any]) -> dict[str, Any]:
        for key, value in choice["values"].items():
            if not self._space[key].values:
                low, high = self._space[key].extremes
                choice["values"][key] = min(max(value, low), high)
        return choice


def scheduler(sweep: Sweep) -> TrialScheduler | None:
    """What ends or changes trials under way; None: nothing does."""
    settings, space = sweep.config.scheduler, sweep.config.space
    if settings.name == "asha":
        longest = max(sweep.config_of(values, sweep.folder).train.max_epochs for values in sweep.samples())
        return Halving(
            sweep,
            time_attr="judged_epochs",
            max_t=longest + 1,  # beyond all: a trial's own end is its training's
            grace_period=settings.grace_epochs,
            reduction_factor=settings.reduction_factor,
        )
    if settings.name == "pbt":
        domains = {}
        for key, dimension in space.items():
            if dimension.values:
                domains[key] = list(dimension.values)
            elif dimension.integer:
                domains[key] = tune.randint(dimension.integer[0], dimension.integer[1] + 1)
            else:
                domains[key] = (tune.uniform if dimension.uniform else tune.loguniform)(*dimension.extremes)
        return Population(
            sweep,
            time_attr="judged_epochs",
            burn_in_period=settings.grace_epochs,
            perturbation_interval=settings.interval_epochs,
            hyperparam_mutations={"values": domains},
            quantile_fraction=settings.quantile,
            resample_probability=settings.resample_probability,
            custom_explore_fn=KeepInside(sweep),
        )
    return None
