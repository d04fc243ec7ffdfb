"""Check that a sweep makes sense before it starts."""

from __future__ import annotations

import itertools

from distvae.config.keys import flatten, keys_with, option_defaults, readers
from distvae.config.schema import Config
from distvae.config.yaml import ConfigError
from distvae.sweeps.space import Value
from distvae.sweeps.specification import SweepConfig
from distvae.sweeps.sweep import Sweep
from distvae.system.errors import UserError
from distvae.system.plural import counted
from distvae.system.roles import Role

# Keys that a sweep sets for each trial.
_OWN = {"run", "resume", "cpu_threads", "evaluation.validation_samples"}

# Most trials of a sweep, because all are listed before it starts.
_MOST = 100_000

# Keys that population-based training may change during a run.
_MUTABLE = keys_with(Config, Role.MUTABLE)


def warn_of_repeats(sweep: Sweep) -> str | None:
    """Return a warning about trials that train exactly what an earlier trial does, or None without any."""
    repeated = sweep.repeated()
    if not repeated:
        return None
    shown = ", ".join(f"{number} (as {earlier})" for number, earlier in list(repeated.items())[:10])
    shown += " …" if len(repeated) > 10 else ""
    one = len(repeated) == 1
    return (
        f"{len(repeated)} of {sweep.trials} trials {'trains' if one else 'train'} exactly what an earlier one does:"
        f" {shown}; lower num_samples, or add values, such as a key `seed: {{grid: [0, 1, 2]}}`"
    )


def check_sweep(sweep: Sweep) -> None:
    """Check the keys, values and options of a sweep.

    Raises:
        UserError: the sweep does not make sense.
    """
    config, space = sweep.config, sweep.config.space
    known = {key for key, _ in flatten(Config())} | option_defaults(Config).keys()
    for key in [*config.set, *space]:
        if key in _OWN:
            raise UserError(f"{key}: the sweep sets it itself for each trial")
    both = set(config.set) & set(space)
    if both:
        raise UserError(f"{', '.join(sorted(both))}: is under both set and space")
    plain = sweep.config_of({}, sweep.folder)  # raises the errors of the base config
    for key, dimension in space.items():
        for value in dimension.extremes:
            try:
                sweep.config_of({key: value}, sweep.folder)
            except ConfigError as error:
                # Other errors are conflicts with the base, which the values of other keys may resolve: see below.
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


def _check_trial(sweep: Sweep, values: dict[str, Value]) -> None:
    if sweep.config_of(values, sweep.folder).autoencoder:
        given = ", ".join(f"{key} = {value}" for key, value in values.items())
        raise UserError(
            f"a trial with {given} is an autoencoder (train.max_epochs is 0, or γ is always 0), which has no NLL to"
            " rank it by"
        )


def check_read(sweep: Sweep) -> None:
    """Check that trials read the options that the sweep sets.

    Every trial must read its own values, and at least one trial the options that all share. Only new sweeps are
    checked, because older versions allowed more.

    Raises:
        UserError: an option is not read.
    """
    configs = []
    for values in itertools.chain(sweep.some(), sweep.samples()):
        unread = sweep.config_of(values, sweep.folder).unread
        for key in values:
            if key in unread:
                raise UserError(_not_read(sweep, key, values, unread[key]))
        configs.append(unread)
    never = {key: reader for key, reader in configs[-1].items() if all(key in unread for unread in configs)}
    here, defaults = dict(flatten(sweep.tree_of({}, sweep.folder))), option_defaults(Config)
    for key, reader in never.items():
        if key in defaults and key in here and here[key] != defaults[key]:
            raise UserError(f"{key} = {here[key]}: no trial reads it ({reader} would): leave it out")


def _not_read(sweep: Sweep, key: str, values: dict[str, Value], reader: str) -> str:
    choices = {choice: names for choice, names in readers(Config, key).items() if choice in values}
    chosen = ", ".join(f"{choice} = {values[choice]}" for choice in choices)
    text = f"space.{key}: a trial{f' with {chosen}' * bool(chosen)} does not read it ({reader} would)"
    for choice, names in choices.items():
        reading = [name for name in names if name in sweep.config.space[choice].values]
        if reading:
            wanted = reading[0] if len(reading) == 1 else f"[{', '.join(reading)}]"
            return f"{text}: give it `when: {{{choice}: {wanted}}}`"
    return f"{text}: leave it out"


def _check_conditions(sweep: Sweep, known: set[str]) -> None:
    space = sweep.config.space
    before: list[str] = []
    for key, dimension in space.items():
        for other, wanted in (dimension.when or {}).items():
            if other not in known:
                raise UserError(f"space.{key}.when: {other} is not a key of a training config")
            if other in space and other not in before:
                raise UserError(f"space.{key}.when: {other} should come before {key}")
            if dimension.grid and other in space and not space[other].grid:
                raise UserError(f"space.{key}.when: {key} is on a grid and {other} is not; make it a choice")
            possible = space[other].values if other in space else (sweep.fixed(other),)
            for value in wanted if isinstance(wanted, list) else [wanted]:
                if possible and value not in possible:
                    raise UserError(f"space.{key}.when: {other} is never {value}")
        before.append(key)


def _check_search(config: SweepConfig) -> None:
    grids = [key for key, dimension in config.space.items() if dimension.grid]
    if config.search == "optuna" and grids:
        raise UserError(f"search=optuna draws its trials and takes no grid: make {', '.join(grids)} a choice")
    if len(grids) == len(config.space) and config.num_samples > 1:
        raise UserError(
            f"num_samples = {config.num_samples}: every key is on a grid, so trials would repeat; for other random"
            " numbers add a key `seed: {grid: [0, 1, 2]}`"
        )
    if config.objective.second is not None and (config.search != "optuna" or config.scheduler.name != "none"):
        raise UserError("objective.second needs search=optuna and scheduler.name=none: no other handles two objectives")


def _check_scheduler(sweep: Sweep, plain: Config) -> None:
    config, scheduler = sweep.config, sweep.config.scheduler
    if scheduler.name == "none":
        return
    if "train.max_epochs" not in config.space and "kl.anneal_epochs" not in config.space:
        annealing = plain.kl.policy.warm_up
        left = plain.train.max_epochs - annealing
        if scheduler.grace_epochs >= left:
            raise UserError(
                f"scheduler.grace_epochs = {scheduler.grace_epochs}: trials have {counted(max(left, 0), 'epoch')} after"
                f" annealing (train.max_epochs {plain.train.max_epochs}, annealing {annealing}), so the scheduler does"
                " nothing"
            )
    if scheduler.name == "asha":
        return
    for key, dimension in config.space.items():
        if key not in _MUTABLE:
            raise UserError(
                f"scheduler=pbt: {key} cannot change during a run; keys that can: {', '.join(sorted(_MUTABLE))}"
            )
        if dimension.grid or dimension.when:
            raise UserError(f"scheduler=pbt: {key} has a grid or a condition; give it a choice or a range")
    if config.search != "random":
        raise UserError("scheduler=pbt draws its values itself: search should be random")
    if config.trial.workers > 1:
        raise UserError(
            f"scheduler=pbt with trial.workers = {config.trial.workers}: Ray Tune cannot pass a checkpoint of a trial"
            " of several processes to another trial; use trial.workers=1"
        )
    if sweep.trials < 2:
        raise UserError("scheduler=pbt with one trial: it has no other to continue; num_samples should be 4 or more")
    check_room(sweep)


def check_room(sweep: Sweep) -> None:
    """Check that ``max_concurrent`` allows what the scheduler does.

    Raises:
        UserError: population-based training could not run all its trials at once.
    """
    most = sweep.config.max_concurrent
    if sweep.config.scheduler.name == "pbt" and most is not None and most < sweep.trials:
        # Ray Tune counts paused trials too, so it would start the rest only after the first ones have ended.
        raise UserError(
            f"scheduler=pbt with max_concurrent = {most}: fewer than the {sweep.trials} trials, which are compared with"
            " one another; leave it out, and to run fewer at once raise trial.cpus or trial.gpus: the others then pause"
        )
