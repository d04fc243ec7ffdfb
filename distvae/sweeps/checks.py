"""Checks that a sweep makes sense before it starts."""

from __future__ import annotations

import itertools
from typing import Any

from distvae.config.kl import OPTIONS
from distvae.config.load import flatten
from distvae.config.schema import Config
from distvae.config.yaml import ConfigError
from distvae.sweeps.space import Value
from distvae.sweeps.specification import SweepConfig
from distvae.sweeps.sweep import Sweep
from distvae.system.errors import UserError

# Keys that a sweep sets itself.
_OURS = {"run", "resume", "cpu_threads", "evaluation.validation_samples"}

# The most trials of a sweep, which are all listed before it starts.
_MOST = 100_000

# What population-based training may change as a run goes on: nothing of it is built into weights or sentences.
MUTABLE = {
    "kl.target_rate", "kl.threshold", "kl.multiplier", "model.dropout", "model.word_dropout",
    "optimizer.learning_rate", "optimizer.clip_norm", "optimizer.weight_decay",
}  # fmt: skip


def warn_of_repeats(sweep: Sweep) -> str | None:
    """A line on trials that train exactly what another does; None where there are none."""
    repeated = sweep.repeated()
    if not repeated:
        return None
    shown = ", ".join(f"{number} (as {earlier})" for number, earlier in list(repeated.items())[:10])
    shown += " …" if len(repeated) > 10 else ""
    one = len(repeated) == 1
    return (
        f"{len(repeated)} of {sweep.trials} trials {'trains' if one else 'train'} exactly what an earlier one does:"
        f" {shown}; give fewer num_samples, or more values, such as a key `seed: {{grid: [0, 1, 2]}}`"
    )


def check_sweep(sweep: Sweep) -> Sweep:
    """A sweep that makes sense.

    Raises:
        UserError: it does not, for one reason or another.
    """
    config, space = sweep.config, sweep.config.space
    known = dict(flatten(Config()))
    for key in [*config.set, *space]:
        if key in _OURS:
            raise UserError(f"{key}: is set by the sweep itself, for each trial")
    both = set(config.set) & set(space)
    if both:
        raise UserError(f"{', '.join(sorted(both))}: stands under set and under space")
    plain = sweep.config_of({}, sweep.folder)  # or the config's own errors
    for key, dimension in space.items():
        for value in dimension.extremes:
            try:
                sweep.config_of({key: value}, sweep.folder)
            except ConfigError as error:
                # Else it does not go together with the base alone: values of several keys are tried together below.
                if key not in known or f"{key} = " in str(error):
                    raise
    _check_conditions(sweep, known)
    if sweep.trials > _MOST:
        raise UserError(f"the space has {sweep.trials:,} trials: more than {_MOST:,}")
    _check_search(config)
    _check_scheduler(sweep, plain)
    for values in sweep.some():
        _check_trial(sweep, values)
    if config.search == "random":
        for values in sweep.points():
            _check_trial(sweep, values)
    return sweep


def _check_trial(sweep: Sweep, values: dict[str, Value]) -> None:
    if sweep.config_of(values, sweep.folder).autoencoder:
        given = ", ".join(f"{key} = {value}" for key, value in values.items())
        raise UserError(
            f"a trial with {given} is an autoencoder (train.max_epochs is 0, or γ is 0 for good), which has no NLL that"
            " a sweep could judge it by"
        )


def check_read(sweep: Sweep) -> Sweep:
    """A new sweep whose trials read what they set, and one of which at least reads what all set. (One from an older
    version may not.)

    Raises:
        UserError: an option is not read.
    """
    never: dict[str, str] | None = None
    for values in itertools.chain(sweep.some(), sweep.samples()):
        config = sweep.config_of(values, sweep.folder)
        unread = config.unread
        for key in values:
            if key in unread:
                raise UserError(_not_read(sweep, key, values, config))
        never = {key: readers for key, readers in unread.items() if never is None or key in never}
    here = dict(flatten(sweep.tree_of({}, sweep.folder)))
    for key, readers in (never or {}).items():
        if key.startswith("kl.") and key in here and here[key] != OPTIONS[key.removeprefix("kl.")]:
            raise UserError(
                f"{key} = {here[key]}, which all trials have, is read by none of them ({readers} would): leave it out"
            )
    return sweep


def _not_read(sweep: Sweep, key: str, values: dict[str, Value], config: Config) -> str:
    chosen = ", ".join(f"{other} = {values[other]}" for other in ("kl.policy", "kl.free_bits") if other in values)
    text = f"space.{key}: a trial{f' with {chosen}' * bool(chosen)} does not read it ({config.unread[key]} would)"
    readers = config.kl.unread.get(key.removeprefix("kl."), ()) if "kl.policy" in values else ()
    reading = [policy for policy in readers if policy in sweep.config.space["kl.policy"].values]
    if not reading:
        return f"{text}: leave it out"
    wanted = reading[0] if len(reading) == 1 else f"[{', '.join(reading)}]"
    return f"{text}: give it `when: {{kl.policy: {wanted}}}`"


def _check_conditions(sweep: Sweep, known: dict[str, Any]) -> None:
    before: list[str] = []
    for key, dimension in sweep.config.space.items():
        for other, wanted in (dimension.when or {}).items():
            if other not in known:
                raise UserError(f"space.{key}.when: {other} is no key of a training config")
            if other in sweep.config.space and other not in before:
                raise UserError(f"space.{key}.when: {other} should stand before {key}")
            if dimension.grid and other in sweep.config.space and not sweep.config.space[other].grid:
                raise UserError(f"space.{key}.when: {key} is on a grid and {other} is not; make it a choice")
            there = sweep.config.space[other].values if other in sweep.config.space else (sweep.fixed(other),)
            for value in wanted if isinstance(wanted, list) else [wanted]:
                if there is not None and value not in there:
                    raise UserError(f"space.{key}.when: {other} is never {value}")
        before.append(key)


def _check_search(config: SweepConfig) -> None:
    grids = [key for key, dimension in config.space.items() if dimension.grid]
    if config.search == "optuna" and grids:
        raise UserError(f"search=optuna draws its trials and has no grid: make {', '.join(grids)} a choice")
    if len(grids) == len(config.space) and config.num_samples > 1:
        raise UserError(
            f"num_samples = {config.num_samples}: every key is on a grid, and a trial would be run again as it was; for"
            " other chance add a key `seed: {grid: [0, 1, 2]}`"
        )
    if config.objective.second is not None and (config.search != "optuna" or config.scheduler.name != "none"):
        raise UserError("objective.second needs search=optuna and scheduler.name=none: no other weighs two objectives")


def _check_scheduler(sweep: Sweep, plain: Config) -> None:
    config, scheduler = sweep.config, sweep.config.scheduler
    if scheduler.name == "none":
        return
    if "train.max_epochs" not in config.space and "kl.anneal_epochs" not in config.space:
        annealing = plain.kl.policy.warm_up
        left = plain.train.max_epochs - annealing
        if scheduler.grace_epochs >= left:
            raise UserError(
                f"scheduler.grace_epochs = {scheduler.grace_epochs}: trials have {max(left, 0)} epochs after annealing"
                f" (train.max_epochs {plain.train.max_epochs}, annealing {annealing}), so none would be touched"
            )
    if scheduler.name == "asha":
        return
    for key, dimension in config.space.items():
        if key not in MUTABLE:
            raise UserError(
                f"scheduler=pbt: {key} cannot change as a run goes on; what can: {', '.join(sorted(MUTABLE))}"
            )
        if dimension.grid or dimension.when:
            raise UserError(f"scheduler=pbt: {key} has a grid or a condition; give it a choice or a range")
    if config.search != "random":
        raise UserError("scheduler=pbt draws its values itself: search should be random")
    if config.trial.workers > 1:
        raise UserError(
            f"scheduler=pbt with trial.workers = {config.trial.workers}: Ray Tune hands no checkpoint of a trial of"
            " several processes to another trial; use trial.workers=1"
        )
    if sweep.trials < 2:
        raise UserError("scheduler=pbt with one trial: there is none to go on from; num_samples should be 4 or more")
    check_room(sweep)


def check_room(sweep: Sweep) -> None:
    """See that the bound on trials side by side leaves the sweep what it is.

    Raises:
        UserError: it does not.
    """
    most = sweep.config.max_concurrent
    if sweep.config.scheduler.name == "pbt" and most is not None and most < sweep.trials:
        # Ray Tune counts those that it has paused too, and so would begin others only when the first have ended.
        raise UserError(
            f"scheduler=pbt with max_concurrent = {most}: fewer than the {sweep.trials} trials, which are compared with"
            " one another; leave it out and raise trial.cpus or trial.gpus for fewer at once: the others pause then"
        )
