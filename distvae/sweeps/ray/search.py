"""How Tune chooses trials: the searcher, and the scheduler."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from distvae.sweeps.ray.trial_metrics import past_metrics
from distvae.sweeps.space import Value
from distvae.sweeps.sweep import Sweep

if TYPE_CHECKING:
    import optuna
    from ray.tune.execution.tune_controller import TuneController

# Seconds for which the state that Tune has saved may still name a checkpoint that is no longer needed.
_SECONDS_UNNEEDED = 60.0


def trial_number(trial_id: str, choice: dict[str, Any]) -> int:
    """Return a trial's number: Optuna's, or the one in Tune's id of a trial from a grid."""
    return int(choice["number"] if "number" in choice else trial_id.rpartition("_")[2])


def searcher(sweep: Sweep) -> OptunaSearch | None:
    """Return Optuna's searcher; None where trials are known in advance."""
    if sweep.config.search == "random":
        return None
    objective = sweep.config.objective
    metrics: str | list[str] = "objective"
    modes: str | list[str] = objective.mode
    if objective.second is not None:
        metrics, modes = ["objective", "second"], [objective.mode, objective.second_mode]
    return OptunaSearch(space=SearchSpace(sweep), metric=metrics, mode=modes, seed=sweep.config.seed)


class SearchSpace:
    """The sweep's space as a function of an Optuna trial. A class, because Tune pickles it."""

    def __init__(self, sweep: Sweep):
        self._sweep = sweep

    def __call__(self, trial: optuna.Trial) -> dict[str, Any]:
        return {"values": self._sweep.draw(_OptunaChance(trial)), "number": trial.number}


class _OptunaChance:
    """Draws the values of a trial by Optuna's sampler."""

    def __init__(self, trial: optuna.Trial):
        self._trial = trial

    def choice(self, key: str, values: tuple[Value, ...]) -> Value:
        return self._trial.suggest_categorical(key, list(values))

    def uniform(self, key: str, low: float, high: float, log: bool) -> float:
        return self._trial.suggest_float(key, low, high, log=log)

    def integer(self, key: str, low: int, high: int) -> int:
        return self._trial.suggest_int(key, low, high)


def _past_metrics(sweep: Sweep, trial: Trial) -> list[dict[str, Any]]:
    """Return what a trial reported before a restart. Tune saves nothing of what a scheduler knows."""
    # The pickled sweep has the folder in which it began; Tune's trials have the current one.
    folder = _tune_folder(trial).parent
    moved = replace(sweep, config=replace(sweep.config, run=str(folder)))
    return past_metrics(moved, trial_number(trial.trial_id, trial.config), trial.config["values"])


def _tune_folder(trial: Trial) -> Path:
    """Return the folder in which Tune keeps its trials now. A trial's own folder has no name before it starts."""
    assert trial.storage is not None
    return Path(trial.storage.experiment_fs_path)


class Halving(AsyncHyperBandScheduler):
    """Ends the worse trials early."""

    def __init__(self, sweep: Sweep, **settings: Any):
        super().__init__(**settings)
        self._sweep = sweep

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        for metrics in _past_metrics(self._sweep, trial):
            self.on_trial_result(tune_controller, trial, metrics)  # its decision has been carried out


class Population(PopulationBasedTraining):
    """Has the worse trials continue from the better ones.

    ``_trial_state`` and ``_save_trial_state`` are private names of Ray's, which has no public way to restore what a
    scheduler knew of a trial before a restart.
    """

    def __init__(self, sweep: Sweep, **settings: Any):
        super().__init__(**settings)
        self._sweep = sweep
        self._needed: dict[tuple[str, ...], float] = {}  # when each checkpoint in Tune's folder was last needed

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        state, settings = self._trial_state[trial], self._sweep.config.scheduler
        for metrics in _past_metrics(self._sweep, trial):
            now = metrics["judged_epochs"]
            if now >= settings.grace_epochs and now - state.last_perturbation_time >= settings.interval_epochs:
                self._save_trial_state(state, now, metrics, trial)
                state.last_perturbation_time = now

    def on_trial_result(self, tune_controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        get_trials: Callable[[], list[Trial]] = tune_controller.get_trials  # Ray declares no types for it
        self._remove_unneeded(trial, get_trials())
        return decision

    def _remove_unneeded(self, trial: Trial, trials: list[Trial]) -> None:
        """Remove the checkpoints of a trial that no trial needs any more.

        A trial needs the one that it continues from next, which may be an old one of another trial. Others may continue
        from the one that a trial had when it was last compared. Tune itself can only keep a number of the newest.
        """
        saved = sorted(Path(cast(str, trial.path)).glob("checkpoint_*"))
        interval = self._sweep.config.scheduler.interval_epochs
        next_ones = [Path(other.checkpoint.path) for other in trials if other.checkpoint is not None]
        now = time.monotonic()
        for path in [*next_ones, *saved[-interval - 1 :]]:
            self._needed[path.parts[-2:]] = now
        for path in saved:
            if now - self._needed.setdefault(path.parts[-2:], now) > _SECONDS_UNNEEDED:
                shutil.rmtree(path, ignore_errors=True)


class KeepInside:
    """Moves values that population-based training has put outside the space back to its edge."""

    def __init__(self, sweep: Sweep):
        self._space = sweep.config.space

    def __call__(self, choice: dict[str, Any]) -> dict[str, Any]:
        for key, value in choice["values"].items():
            if not self._space[key].values:
                low, high = self._space[key].extremes
                choice["values"][key] = min(max(value, low), high)
        return choice


def scheduler(sweep: Sweep) -> TrialScheduler | None:
    """Return what ends or changes running trials; None if nothing does."""
    settings, space = sweep.config.scheduler, sweep.config.space
    if settings.name == "asha":
        longest = max(sweep.config_of(values, sweep.folder).train.max_epochs for values in sweep.samples())
        return Halving(
            sweep,
            time_attr="judged_epochs",
            max_t=longest + 1,  # never reached: a trial ends with its training
            grace_period=settings.grace_epochs,
            reduction_factor=settings.reduction_factor,
        )
    if settings.name == "pbt":
        domains: dict[str, Any] = {}
        for key, dimension in space.items():
            if dimension.values:
                domains[key] = list(dimension.values)
            elif dimension.integer:
                domains[key] = tune.randint(dimension.integer[0], dimension.integer[1] + 1)
            elif dimension.uniform:
                domains[key] = tune.uniform(*dimension.uniform)
            elif dimension.log_uniform:
                domains[key] = tune.loguniform(*dimension.log_uniform)
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
