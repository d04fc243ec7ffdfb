"""A sweep: what its file asks for, the trials that come of it, and how they are judged. Nothing here knows of Ray.

−ELBO prefers collapse, so trials are judged by the importance-weighted NLL of validation sentences. A trial whose
latent is not alive, or whose KL is not near its λ, ranks behind all others.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from dataclasses import field as plain_field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass as checked

from distvae.config.kl import OPTIONS, KLConfig
from distvae.config.load import (
    ConfigError,
    apply_override,
    dump_config,
    explain,
    flatten,
    parse_config,
    run_folder,
    set_key,
)
from distvae.config.schema import Config, StageConfig
from distvae.config.yaml import dump_tree, read_tree
from distvae.evaluation.liveness import LatentState, latent_state, missing_information
from distvae.runs.attempts import read_attempts
from distvae.runs.resume import NO_MATTER
from distvae.runs.tracking import Seconds, read_metrics
from distvae.system.errors import UserError
from distvae.system.files import damaged, read_as, write_json
from distvae.system.settings import RULES, AboveZero, Count, Folder, OpenUnit, Positive, Seed

# What a trial can be judged by, and which way is better.
METRICS: dict[str, Literal["min", "max"]] = {
    "nll": "min",
    "ppl": "min",
    "neg_elbo": "min",
    "re": "min",
    "kl": "max",
    "mutual_information": "max",
    "active_units": "max",
}

# How reports call them.
NAMES = {
    "nll": "NLL",
    "ppl": "PPL",
    "neg_elbo": "−ELBO",
    "re": "RE",
    "kl": "KL",
    "mutual_information": "MI",
    "active_units": "AU",
}

# Keys that a sweep sets itself.
_OURS = {"run", "resume", "cpu_threads", "evaluation.validation_samples"}

# What population-based training may change as a run goes on: nothing of it is built into weights or sentences.
MUTABLE = {
    "kl.target_rate", "kl.threshold", "kl.multiplier", "model.dropout", "model.word_dropout",
    "optimizer.learning_rate", "optimizer.clip_norm", "optimizer.weight_decay",
}  # fmt: skip

# Draws by which the keys of a space are seen to go together, and the most trials that are listed beforehand.
_TRIED, _MOST = 200, 100_000

# Greater than any score: how far a trial that misses a constraint ranks behind those that meet all.
_BEHIND = 1e6

Value = bool | int | float | str | None


class Chance(Protocol):
    """Draws the values of a trial: by numbers from a seed, or by what a searcher has learnt."""

    def choice(self, key: str, values: tuple[Value, ...]) -> Value: ...

    def uniform(self, key: str, low: float, high: float, log: bool) -> float: ...

    def integer(self, key: str, low: int, high: int) -> int: ...


class Seeded:
    """Chance that a seed sets.

    Args:
        seed: numbers that name what is drawn.
    """

    def __init__(self, *seed: int):
        self._generator = np.random.default_rng(seed)

    def choice(self, key: str, values: tuple[Value, ...]) -> Value:
        return values[self._generator.integers(len(values))]

    def uniform(self, key: str, low: float, high: float, log: bool) -> float:
        if log:
            return float(min(max(math.exp(self._generator.uniform(math.log(low), math.log(high))), low), high))
        return float(self._generator.uniform(low, high))

    def integer(self, key: str, low: int, high: int) -> int:
        return int(self._generator.integers(low, high + 1))


Values = Annotated[tuple[Value, ...], Field(min_length=1)]
Range = tuple[float, float]


@checked(frozen=True, config=RULES)
class Dimension:
    """The values of one key: exactly one of the first five."""

    # Each of these values, with each of every other grid.
    grid: Values | None = None
    # One of these values, drawn.
    choice: Values | None = None
    # A number between these two, drawn evenly, or evenly in its logarithm.
    uniform: Range | None = None
    log_uniform: Range | None = None
    # A whole number from the one to the other.
    integer: tuple[int, int] | None = None
    # Only where another key has this value, or one of these: `when: {kl.policy: soft_free_bits}`.
    when: dict[str, Value | list[Value]] | None = None

    @model_validator(mode="after")
    def _one_kind(self):
        kinds = [name for name in ("grid", "choice", "uniform", "log_uniform", "integer") if getattr(self, name)]
        if len(kinds) != 1:
            raise ValueError("should have one of grid, choice, uniform, log_uniform, integer")
        bounds = self.uniform or self.log_uniform or self.integer
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(f"{kinds[0]}: {list(bounds)}: the first should be below the second")
        if self.log_uniform and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform: {list(self.log_uniform)}: should be above 0")
        for values in (self.grid, self.choice):
            if values and len({(type(value), value) for value in values}) < len(values):
                raise ValueError(f"{kinds[0]}: {list(values)}: a value stands there twice")
        return self

    @property
    def values(self) -> tuple[Value, ...] | None:
        """All values there are, where they are few."""
        return self.grid or self.choice

    @property
    def extremes(self) -> tuple[Value, ...]:
        """Values between which all others lie."""
        return self.values or self.uniform or self.log_uniform or self.integer

    @property
    def numeric(self) -> bool:
        """Whether all values are numbers."""
        return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in self.extremes)

    def draw(self, key: str, chance: Chance) -> Value:
        """A value, of one that is not on a grid."""
        if self.choice:
            return chance.choice(key, self.choice)
        if self.integer:
            return chance.integer(key, *self.integer)
        return chance.uniform(key, *(self.uniform or self.log_uniform), log=self.log_uniform is not None)


@checked(frozen=True, config=RULES)
class ObjectiveConfig:
    """What makes one trial better than another."""

    metric: Literal["nll", "ppl", "neg_elbo", "re", "kl", "mutual_information", "active_units"] = "nll"
    # Null: the metric's own (an NLL should be low, a mutual information high).
    direction: Literal["min", "max"] | None = None
    # A trial that misses a constraint is worse than any that meets them all, and of two such the one that misses by
    # more nats is worse. The KL should lie within this share of λ, where the trial's method has a λ. Null: the KL may
    # be anything. (It is no β: β may be swept.)
    kl_tolerance: OpenUnit | None = 0.1
    # The latent should be alive: have a mutual information of half its KL and half of λ (docs/measures.md). A KL near λ
    # does not make it so.
    require_alive: bool = True
    # A second metric: the trials are then judged by both, and none is the best.
    second: Literal["nll", "ppl", "neg_elbo", "re", "kl", "mutual_information", "active_units"] | None = None
    # K of the NLL while training. A small one leans to collapse too.
    importance_samples: Annotated[int, Field(ge=50, le=100_000)] = 50

    @model_validator(mode="after")
    def _two_metrics(self):
        if self.second == self.metric:
            raise ValueError(f"objective.second = {self.second}: is the metric already")
        return self

    @property
    def mode(self) -> Literal["min", "max"]:
        return self.direction or METRICS[self.metric]

    @property
    def second_mode(self) -> Literal["min", "max"]:
        return METRICS[self.second]


@checked(frozen=True, config=RULES)
class SchedulerConfig:
    """What becomes of trials under way. Epochs count from the end of annealing: before it nothing can be judged."""

    # `asha` ends the worse of them early (Li et al., 2020), `pbt` has them go on from the better ones (Jaderberg et
    # al., 2017).
    name: Literal["none", "asha", "pbt"] = "none"
    # Epochs that every trial gets (asha), or after which they are compared for the first time (pbt).
    grace_epochs: Positive = 3
    # asha: a trial in this many gets this many times the epochs.
    reduction_factor: Annotated[int, Field(ge=2, le=1000)] = 3
    # pbt: epochs from one comparison to the next.
    interval_epochs: Positive = 2
    # pbt: the share of the trials that go on from as many of the best.
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    # pbt: how often a value is drawn anew, and not moved by a fifth.
    resample_probability: Annotated[float, Field(ge=0, le=1)] = 0.25


@checked(frozen=True, config=RULES)
class TrialConfig:
    """What each trial gets."""

    # Processes, which may lie on several nodes; data-parallel as in any run.
    workers: Annotated[int, Field(ge=1, le=65536)] = 1
    # Of each process; several share a core under 1. Above 1 they are whole.
    cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    # Of each process; several trials share a GPU under 1. Null: 1 where there are GPUs, else 0.
    gpus: Annotated[float, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _whole_cores(self):
        if self.cpus > 1 and self.cpus != int(self.cpus):
            raise ValueError(f"trial.cpus = {self.cpus:g}: should be whole above 1")
        return self

    @property
    def threads(self) -> int:
        """Of each process."""
        return max(1, int(self.cpus))


@checked(frozen=True, config=RULES)
class FinalistsConfig:
    """The best trials, which are scored again, on validation and test sentences."""

    count: Count = 3
    importance_samples: Positive = 500


@checked(frozen=True, config=RULES)
class StopConfig:
    """When a sweep ends before its trials have."""

    # Hours from the first start, all starts together. Null: none.
    hours: AboveZero | None = None
    # Trials that have failed. Null: any number.
    failed: Positive | None = None


@checked(frozen=True, config=RULES)
class SweepConfig:
    # The training config that the trials start from.
    base: Folder
    # Keys of it and their values, each alone: `kl.target_rate: {grid: [2, 4, 8]}`.
    space: Annotated[dict[str, Dimension], Field(min_length=1)]
    # The sweep's folder. Null: runs/ and the file's path below configs/.
    run: Folder | None = None
    # Keys that have another value in all trials than in `base`.
    set: dict[str, Any] = plain_field(default_factory=dict)
    # `random` (and grids), or `optuna`: a tree-structured Parzen estimator (Bergstra et al., 2011), which learns from
    # the trials before.
    search: Literal["random", "optuna"] = "random"
    # Trials; of a space with grids, for each point of them.
    num_samples: Positive = 1
    # Of the draws from the space. Trials train by the base's own seed.
    seed: Seed = 0
    objective: ObjectiveConfig = plain_field(default_factory=ObjectiveConfig)
    scheduler: SchedulerConfig = plain_field(default_factory=SchedulerConfig)
    trial: TrialConfig = plain_field(default_factory=TrialConfig)
    # Trials side by side. Null: as many as there is room for.
    max_concurrent: Positive | None = None
    finalists: FinalistsConfig = plain_field(default_factory=FinalistsConfig)
    # How often a trial whose process was lost is started again. Bad input and bad numbers are not tried again.
    max_restarts: Count = 3
    stop: StopConfig = plain_field(default_factory=StopConfig)


# Keys of a sweep that may differ when it goes on.
MAY_CHANGE = {"base", "run", "max_concurrent", "finalists", "stop"}


@dataclass(frozen=True)
class Sweep:
    """A sweep, which its loader has seen to make sense."""

    config: SweepConfig
    base: dict[str, Any]  # the training config, as plain values

    @property
    def folder(self) -> Path:
        return Path(self.config.run)

    @property
    def trials(self) -> int:
        """How many there are."""
        return self.config.num_samples * len(self.grid())

    def grid(self) -> list[dict[str, Value]]:
        """The points of all grids together; one, and empty, where there is none."""
        keys = [key for key, dimension in self.config.space.items() if dimension.grid]
        points = []
        for values in itertools.product(*(self.config.space[key].grid for key in keys)):
            point = {}
            for key, value in zip(keys, values, strict=True):
                if self._applies(key, point):
                    point[key] = value
            if point not in points:
                points.append(point)
        return points

    def points(self) -> list[dict[str, Value]]:
        """The values of every trial, of a sweep whose trials are known beforehand: every point of the grids once before
        any twice, for a sweep may be ended early."""
        return [
            self.draw(Seeded(self.config.seed, number), point)
            for number, point in enumerate(self.grid() * self.config.num_samples)
        ]

    def draw(self, chance: Chance, point: dict[str, Value] | None = None) -> dict[str, Value]:
        """The values of a trial, in the order of the space. ``point`` has those that are on a grid."""
        values: dict[str, Value] = {}
        for key, dimension in self.config.space.items():
            if dimension.grid and key in (point or {}):
                values[key] = point[key]
            elif not dimension.grid and self._applies(key, values):
                values[key] = dimension.draw(key, chance)
        return values

    def some(self) -> list[dict[str, Value]]:
        """A sample of the space."""
        grid = self.grid()
        return [self.draw(Seeded(number), grid[number % len(grid)]) for number in range(_TRIED)]

    def samples(self) -> list[dict[str, Value]]:
        """The values of all trials, or where these are not known beforehand, of some that there may be."""
        return self.points() if self.config.search == "random" else self.some()

    def _applies(self, key: str, values: dict[str, Value]) -> bool:
        when = self.config.space[key].when or {}
        return all(
            (values[other] if other in values else self._fixed(other))
            in (wanted if isinstance(wanted, list) else [wanted])
            for other, wanted in when.items()
        )

    def _fixed(self, key: str) -> Value:
        """A key's value in a trial that does not set it; nothing for a swept one, which is left out there."""
        return None if key in self.config.space else dict(flatten(self.config_of({}, self.folder)))[key]

    def config_of(self, values: dict[str, Value], run: Path, pretrained: Path | None = None) -> Config:
        """The training config of a trial.

        Raises:
            ConfigError: the values do not go together.
        """
        tree = self.tree_of(values, run, pretrained)
        said = ", ".join(f"{key}={value}" for key, value in values.items())
        # Where the policy is swept, what the base says of one is not read by the others: see `_check_read`.
        return parse_config(tree, f"a trial of {self.config.base}" + (f" with {said}" if said else ""), stored=True)

    def tree_of(self, values: dict[str, Value], run: Path, pretrained: Path | None = None) -> dict[str, Any]:
        """Return the training config of a trial as plain keys and values, before it is validated."""
        tree = copy.deepcopy(self.base)
        samples = self.config.objective.importance_samples
        ours = {"evaluation.validation_samples": samples, "evaluation.importance_samples": samples}
        ours |= self.config.set | values
        ours |= {"run": str(run), "resume": "auto", "cpu_threads": self.config.trial.threads}
        if pretrained is not None:
            ours["pretrained"] = str(pretrained)
        for key, value in ours.items():
            set_key(tree, key, value)
        return tree

    def repeated(self) -> dict[int, int]:
        """Trials known beforehand that train exactly what an earlier one does, and that one."""
        if self.config.search != "random":
            return {}
        first: dict[str, int] = {}
        found = {}
        for number, values in enumerate(self.points()):
            config = self.config_of(values, self.folder)
            read = {key: value for key, value in flatten(config) if key not in config.unread}
            earlier = first.setdefault(json.dumps(read, sort_keys=True), number)
            if earlier != number:
                found[number] = earlier
        return found

    # -- Pretraining -----------------------------------------------------------------------------------------------

    def pretrainings(self) -> dict[str, Config]:
        """The pretrainings that several trials share, by their fingerprints; none where each trial has its own."""
        if self.config.search == "random":
            points, trials = self.points(), self.trials
        else:
            kept = {key: d for key, d in self.config.space.items() if _matters_to_pretraining(key)}
            if any(dimension.values is None or dimension.when for dimension in kept.values()):
                return {}
            chosen = itertools.product(*(dimension.values for dimension in kept.values()))
            points, trials = [dict(zip(kept, values, strict=True)) for values in chosen], self.trials
        found = {}
        for values in points:
            config = pretraining_of(self.config_of(values, self.folder), self.folder)
            if config is not None:
                found[fingerprint(config)] = config
        return found if len(found) < trials else {}


def pretraining_of(config: Config, folder: Path) -> Config | None:
    """The pretraining alone that a trial begins with, as a run of its own in a sweep's folder; None if it has none."""
    if config.pretrained is not None or config.pretrain.max_epochs == 0:
        return None
    alone = replace(
        config, train=StageConfig(0), kl=KLConfig(), evaluation=replace(config.evaluation, validation_samples=0)
    )
    return replace(alone, run=str(folder / "pretrained" / fingerprint(alone)))


def fingerprint(config: Config) -> str:
    """Names what a pretraining comes to: equal for configs that pretrain alike."""
    kept = {key: value for key, value in flatten(config) if _matters_to_pretraining(key)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def _matters_to_pretraining(key: str) -> bool:
    section = key.partition(".")[0]
    if key in NO_MATTER - {"data.path"} or section in ("train", "kl", "checkpoint", "pretrained"):
        return False
    return section != "evaluation" or key == "evaluation.seed"


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


# -- Judgement ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a trial comes to if it ends now: scores of the validation sentences, by the weights that it would keep."""

    epoch: int  # of the stage, that these are of
    kl_weight: float
    target_rate: float | None  # None: the method has no λ
    sentences: int  # that were scored
    nll: float
    ppl: float
    neg_elbo: float
    re: float
    kl: float
    mutual_information: float
    active_units: int

    @property
    def latent(self) -> LatentState | None:
        """Whether the latent is alive; None where that cannot be told."""
        return latent_state(self.kl, self.mutual_information, self.sentences, self.target_rate)

    def kl_off(self, objective: ObjectiveConfig) -> float:
        """Nats by which the KL is further from λ than its tolerance; 0 without a λ or a tolerance."""
        if objective.kl_tolerance is None or self.target_rate is None:
            return 0.0
        return max(0.0, abs(self.kl - self.target_rate) - objective.kl_tolerance * self.target_rate)

    def violation(self, objective: ObjectiveConfig) -> float:
        """Nats by which the constraints are missed: of KL beyond its tolerance, and of information that is lacking."""
        missing = missing_information(self.kl, self.mutual_information, self.sentences, self.target_rate)
        return self.kl_off(objective) + (missing if objective.require_alive else 0.0)

    def shortcomings(self, objective: ObjectiveConfig) -> str:
        """Which constraints are missed, in words; empty where none is."""
        found = []
        if objective.require_alive and self.latent not in ("alive", None):
            found.append(f"its latent is {self.latent} (MI {self.mutual_information:.2f})")
        if self.kl_off(objective):
            found.append(f"its KL of {self.kl:.2f} is off (λ = {self.target_rate:g})")
        return " and ".join(found)


def outcome(config: Config, rows: list[dict[str, Any]]) -> Outcome | None:
    """What the records of a run (``tracking.read_metrics``) come to; None before the VAE has had an epoch."""
    row = kept(rows)
    if row is None:
        return None
    valid = row["valid"]
    return Outcome(
        epoch=row["epoch"],
        kl_weight=row["kl_weight"],
        target_rate=config.kl.rate,
        sentences=valid["sentences"],
        active_units=valid["active_units"],
        **{name: valid[name]["mean"] for name in METRICS if name != "active_units"},
    )


def kept(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The record of the epoch whose weights a run would keep if it ended now; None before the VAE has had one."""
    rows = [row for row in rows if row["stage"] == "train"]
    improved = [row for row in rows if row["verdict"] == "improved"]
    return next(reversed(improved or rows), None)


def is_over(config: Config, rows: list[dict[str, Any]]) -> bool:
    """Whether the training of the VAE has ended, so that nothing is left to train from its last checkpoint."""
    last = next((row for row in reversed(rows) if row["stage"] == "train"), None)
    return last is not None and (last["epoch"] >= config.train.max_epochs or last["verdict"] == "stop")


def judged_epochs(config: Config, rows: list[dict[str, Any]]) -> int:
    """Epochs since annealing has ended."""
    return max([row["epoch"] - config.kl.policy.warm_up for row in rows if row["stage"] == "train"] + [0])


def score(objective: ObjectiveConfig, found: Outcome, second: bool = False) -> float:
    """One number to compare trials by, in the objective's direction (Deb, 2000): the metric, or the second one, of a
    trial that meets the constraints; any other trial is behind all those, by how much it misses them."""
    metric, mode = (objective.second, objective.second_mode) if second else (objective.metric, objective.mode)
    violation = found.violation(objective)
    if violation == 0:
        return float(getattr(found, metric))
    return _BEHIND + violation if mode == "min" else -_BEHIND - violation


def rank(objective: ObjectiveConfig, outcomes: dict[int, Outcome]) -> list[int]:
    """The numbers of trials, the best first."""
    sign = 1 if objective.mode == "min" else -1
    return sorted(outcomes, key=lambda number: (sign * score(objective, outcomes[number]), number))


def front(objective: ObjectiveConfig, outcomes: dict[int, Outcome]) -> list[int]:
    """Of two objectives: the trials that no other beats in both, in the order of their numbers. A trial that misses the
    constraints is beaten by any that misses them by less: else a KL that is too high would buy its way in by an
    information that is high too."""
    signs = (1 if objective.mode == "min" else -1, 1 if objective.second_mode == "min" else -1)
    violations = {number: found.violation(objective) for number, found in outcomes.items()}
    least = min(violations.values(), default=0.0)
    points = {
        number: (signs[0] * getattr(found, objective.metric), signs[1] * getattr(found, objective.second))
        for number, found in outcomes.items()
        if violations[number] == least
    }

    def beaten(point: tuple[float, float]) -> bool:
        return any(
            other != point and all(o <= p for o, p in zip(other, point, strict=True)) for other in points.values()
        )

    return sorted(number for number, point in points.items() if not beaten(point))


def why_not_best(objective: ObjectiveConfig, outcomes: dict[int, Outcome]) -> str | None:
    """Why the trial with the best metric does not rank first; None if it does."""
    sign = 1 if objective.mode == "min" else -1
    order = rank(objective, outcomes)
    leading = min(order, key=lambda number: sign * getattr(outcomes[number], objective.metric), default=None)
    if leading is None or not sign * (
        getattr(outcomes[order[0]], objective.metric) - getattr(outcomes[leading], objective.metric)
    ):
        return None
    name, value = NAMES[objective.metric], getattr(outcomes[leading], objective.metric)
    better = "lower" if sign == 1 else "higher"
    return (
        f"trial {leading} has a {better} {name} ({value:.2f}), but {outcomes[leading].shortcomings(objective)}: it"
        " ranks behind"
    )


# -- Files -------------------------------------------------------------------------------------------------------------


def load_sweep(path: str | Path, overrides: tuple[str, ...] = ()) -> Sweep:
    """Read a sweep's file, and the training config that it names.

    Raises:
        UserError: one of them cannot be read, or they ask for what cannot be.
    """
    tree = read_tree(path)
    for override in overrides:
        apply_override(tree, override)
    if tree.get("run") is None:
        tree["run"] = run_folder(path)
    config = _parse(tree, str(path))
    return _check_read(_checked(Sweep(config, read_tree(config.base))))


def open_sweep(folder: Path) -> Sweep:
    """Read the sweep that lies in a folder, wherever that is now.

    Raises:
        UserError: there is none.
    """
    path = folder / "sweep.yaml"
    if not path.is_file():
        raise UserError(f"{folder}: is no sweep's folder: it has no sweep.yaml")
    if not is_sweeps(folder):
        raise UserError(f"{folder}: is no sweep's folder: no sweep wrote its sweep.yaml")
    config, base = replace(_parse(read_tree(path), str(path)), run=str(folder)), folder / "base.yaml"
    parse_config(read_tree(base), str(base), stored=True)  # errors of a trial name the file that the base came from
    return _checked(Sweep(config, read_tree(base)))


def is_sweeps(folder: Path) -> bool:
    """Whether a sweep wrote what is in a folder: it begins by claiming it. (So does a run, which leaves its config.)"""
    return bool(read_attempts(folder)) and not (folder / "config.yaml").exists()


def dump_sweep(sweep: Sweep) -> dict[str, str]:
    """The files of a sweep's folder that say what it is, by their names."""
    tree = TypeAdapter(SweepConfig).dump_python(sweep.config, mode="json")
    tree["space"] = {
        key: {name: value for name, value in dimension.items() if value is not None}
        for key, dimension in tree["space"].items()
    }
    return {"sweep.yaml": dump_tree(tree), "base.yaml": dump_config(_whole_base(sweep))}


def _whole_base(sweep: Sweep) -> Config:
    return parse_config(copy.deepcopy(sweep.base) | {"run": None}, sweep.config.base, stored=True)


def differences(there: Sweep, here: Sweep) -> list[str]:
    """What makes one sweep another: nothing, if the one can go on as the other."""

    def settings(sweep: Sweep) -> dict[str, Any]:
        tree = TypeAdapter(SweepConfig).dump_python(sweep.config, mode="json")
        base = {f"base: {key}": value for key, value in flatten(_whole_base(sweep))}
        return {key: value for key, value in tree.items() if key not in MAY_CHANGE} | base

    old, new = settings(there), settings(here)
    return [f"{key} ({old[key]} there, {new[key]} here)" for key in new if old[key] != new[key]]


def _parse(tree: dict[str, Any], source: str) -> SweepConfig:
    kinds = {field.name for field in fields(Dimension)}
    for section, ends in (("set", lambda value: False), ("space", lambda value: bool(kinds & value.keys()))):
        if isinstance(tree.get(section), dict):
            tree[section] = dict(_dotted(tree[section], ends))
    strays = {field.name for field in fields(Config)} - {field.name for field in fields(SweepConfig)}
    for name, value in tree.items():
        if name in strays:
            key = next((key for key, _ in flatten({name: value})), name)
            raise ConfigError(f"{source}: {key} is a key of the training config: write set.{key}", tree.get("run"))
    try:
        return TypeAdapter(SweepConfig).validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error, SweepConfig)}", tree.get("run")) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: is not made of plain keys and values: {error}") from None


def _dotted(tree: dict[str, Any], ends: Callable[[dict], bool], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values, of keys that may be dotted or sections in one another."""
    for key, value in tree.items():
        if isinstance(value, dict) and value and not ends(value):
            yield from _dotted(value, ends, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# -- Whether it makes sense --------------------------------------------------------------------------------------------


def _checked(sweep: Sweep) -> Sweep:
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


def _check_read(sweep: Sweep) -> Sweep:
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
    for key, readers in never.items():
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
            there = sweep.config.space[other].values if other in sweep.config.space else (sweep._fixed(other),)
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


# -- How trials stand --------------------------------------------------------------------------------------------------

State = Literal["waiting", "running", "finished", "stopped", "failed"]


@dataclass
class Trial:
    """A trial as the sweep's ``trials.json`` tells of it. ``stopped``: before its end, by scheduler or clock."""

    number: Count
    values: dict[str, Value]
    state: State = "waiting"
    reason: str | None = None  # why it failed or was stopped
    node: str | None = None  # where it ran last
    begun: float | None = None  # seconds since 1970
    seconds: Seconds = 0.0  # that it has held its resources, all starts together
    starts: Count = 0

    @property
    def well(self) -> bool:
        """Whether it has ended, and not failed."""
        return self.state in ("finished", "stopped")

    @property
    def ended(self) -> bool:
        return self.well or self.state == "failed"


@dataclass(frozen=True)
class Generation:
    """A run of a trial: its first, or one that population-based training had go on from another trial's."""

    run: Path
    parent: Path | None = None
    step: int = 0  # of the parent, from which on it went on
    values: dict[str, Value] | None = None  # as they were changed to


def generations(folder: Path, number: int) -> list[Generation]:
    """A trial's runs, the first one first. Paths are where the sweep lies now."""
    first = folder / "trials" / f"{number:04d}"
    found = [Generation(first)] if first.is_dir() else []
    later = [path for path in first.parent.glob(f"{first.name}.*") if path.suffix[1:].isdecimal()]
    for path in sorted(later, key=lambda path: int(path.suffix[1:])):
        if not os.path.lexists(path / "lineage.json"):
            continue  # it has not begun
        told = read_as(_Lineage, path / "lineage.json", "what a run goes on from")
        parent = folder / "trials" / told.parent
        if told.parent != parent.name:
            raise damaged(path / "lineage.json", "what a run goes on from", f"{told.parent!r} is no name of a run")
        found.append(Generation(path, parent, told.step, told.values))
    return found


@dataclass(frozen=True)
class _Lineage:
    """``lineage.json``."""

    parent: str  # the name of its folder
    step: Count
    values: dict[str, Value] | None


def save_lineage(generation: Generation) -> None:
    """Note where a run goes on from."""
    content = {"parent": generation.parent.name, "step": generation.step, "values": generation.values}
    generation.run.mkdir(parents=True, exist_ok=True)
    write_json(generation.run / "lineage.json", content)


def ancestry(folder: Path, run: Path) -> list[Generation]:
    """A run and those that it continues, the newest first.

    Raises:
        UserError: a lineage leads to no run before it.
    """
    found: list[Generation] = []
    while True:
        number = int(run.name.partition(".")[0])
        own = next((g for g in generations(folder, number) if g.run.name == run.name), Generation(run))
        found.append(own)
        if own.parent is None:
            return found
        run = own.parent
        if run.name in {generation.run.name for generation in found} or not run.is_dir():
            raise damaged(own.run / "lineage.json", "what a run goes on from", f"{run.name} is no run before it")


def first_trial(folder: Path, run: Path) -> int:
    """The number of the trial whose first run this one continues, by way of all between."""
    return int(ancestry(folder, run)[-1].run.name)


def history(folder: Path, run: Path) -> list[dict[str, Any]]:
    """The records of a run and of those that it continues, as one."""
    rows: list[dict[str, Any]] = []
    for generation in reversed(ancestry(folder, run)):
        rows = [row for row in rows if row["step"] <= generation.step] + read_metrics(generation.run)
    return rows


@dataclass
class Progress:
    """How a sweep stands: its ``sweep.json``. Seconds are those of the clock, all starts together."""

    state: Literal["running", "finished", "interrupted", "failed"] = "running"
    reason: str | None = None
    begun: float = 0.0  # seconds since 1970
    starts: Count = 0
    seconds: Seconds = 0.0
    pretraining_seconds: Seconds = 0.0
    trial_seconds: Seconds = 0.0  # while trials ran
    finalist_seconds: Seconds = 0.0
    place_seconds: Seconds = 0.0  # of all places for trials together, while trials ran: their number may change
    slots: Count = 0  # places at the last start: trials that there was room for, side by side
    nodes: tuple[str, ...] = ()
    ended_by: str | None = None  # what of `stop` ended it before its trials had
    data: str | None = None  # fingerprint of the sentences; None: of an older version, or of trials that have their own


def save_progress(folder: Path, progress: Progress) -> None:
    """Write ``sweep.json``."""
    write_json(folder / "sweep.json", asdict(progress))


def load_progress(folder: Path) -> Progress:
    """How a sweep stands; as new where nothing is told.

    Raises:
        UserError: ``sweep.json`` is not what a sweep writes.
    """
    path = folder / "sweep.json"
    if not os.path.lexists(path):
        return Progress()
    return read_as(Progress, path, "what a sweep writes")


def save_trials(folder: Path, trials: list[Trial]) -> None:
    """Write ``trials.json``."""
    write_json(folder / "trials.json", {"trials": [asdict(trial) for trial in trials]})


def load_trials(folder: Path) -> list[Trial]:
    """The trials of a sweep, in the order of their numbers.

    Raises:
        UserError: ``trials.json`` is not what a sweep writes.
    """
    path = folder / "trials.json"
    if not os.path.lexists(path):
        return []
    found = read_as(_Trials, path, "a sweep's trials").trials
    if [trial.number for trial in found] != sorted({trial.number for trial in found}):
        raise damaged(path, "a sweep's trials", "their numbers do not rise")
    return found


@dataclass(frozen=True)
class _Trials:
    """``trials.json``."""

    trials: list[Trial]
