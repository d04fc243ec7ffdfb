"""A sweep: its specification and base config, the values of its trials, and their training configs."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distvae.config.keys import flatten
from distvae.config.load import parse_config, set_key
from distvae.config.schema import Config
from distvae.sweeps.pretraining import fingerprint, matters_to_pretraining, pretraining_of
from distvae.sweeps.space import Chance, Seeded, Value
from distvae.sweeps.specification import SweepConfig

# Number of random draws from a space that are checked before a sweep starts.
_SAMPLES = 200


@dataclass(frozen=True)
class Sweep:
    """A sweep, from ``storage.load_sweep`` or ``storage.open_sweep``, which check it.

    Args:
        config: the sweep file.
        base: the training config as plain values.
    """

    config: SweepConfig
    base: dict[str, Any]

    @property
    def folder(self) -> Path:
        return Path(self.config.run)

    @property
    def trials(self) -> int:
        """Number of trials."""
        return self.config.num_samples * len(self.grid())

    def grid(self) -> list[dict[str, Value]]:
        """Return all combinations of the grids; a single empty one without grids."""
        grids = {key: dimension.grid for key, dimension in self.config.space.items() if dimension.grid}
        points: list[dict[str, Value]] = []
        for values in itertools.product(*grids.values()):
            point: dict[str, Value] = {}
            for key, value in zip(grids, values, strict=True):
                if self._applies(key, point):
                    point[key] = value
            if point not in points:
                points.append(point)
        return points

    def points(self) -> list[dict[str, Value]]:
        """Return the values of every trial of a random search.

        Every point of the grids comes once before any comes twice, because a sweep may be ended early.
        """
        return [
            self.draw(Seeded(self.config.seed, number), point)
            for number, point in enumerate(self.grid() * self.config.num_samples)
        ]

    def draw(self, chance: Chance, point: dict[str, Value] | None = None) -> dict[str, Value]:
        """Draw the values of a trial, in the order of the space.

        Args:
            point: values of the grids.
        """
        point = point or {}
        values: dict[str, Value] = {}
        for key, dimension in self.config.space.items():
            if dimension.grid and key in point:
                values[key] = point[key]
            elif not dimension.grid and self._applies(key, values):
                values[key] = dimension.draw(key, chance)
        return values

    def some(self) -> list[dict[str, Value]]:
        """Return a random sample of the space."""
        grid = self.grid()
        return [self.draw(Seeded(number), grid[number % len(grid)]) for number in range(_SAMPLES)]

    def samples(self) -> list[dict[str, Value]]:
        """Return the values of all trials of a random search, or else a random sample of the space."""
        return self.points() if self.config.search == "random" else self.some()

    def _applies(self, key: str, values: dict[str, Value]) -> bool:
        when = self.config.space[key].when or {}
        return all(
            (values[other] if other in values else self.fixed(other))
            in (wanted if isinstance(wanted, list) else [wanted])
            for other, wanted in when.items()
        )

    def fixed(self, key: str) -> Value:
        """Return the value of a key in trials that do not set it, or None if it is in the space or nothing reads it."""
        if key in self.config.space:
            return None
        value: Value = dict(flatten(self.config_of({}, self.folder))).get(key)
        return value

    def config_of(self, values: dict[str, Value], run: Path, pretrained: Path | None = None) -> Config:
        """Return the training config of a trial.

        Args:
            values: of the space.
            run: the trial's run folder.
            pretrained: run folder of a pretraining that trials share.

        Raises:
            ConfigError: the values do not go together.
        """
        tree = self.tree_of(values, run, pretrained)
        given = ", ".join(f"{key}={value}" for key, value in values.items())
        source = f"a trial of {self.config.base}" + (f" with {given}" if given else "")
        # `stored` accepts options that nothing reads: a swept policy may not read those that the base sets for another.
        # `checks.check_read` refuses the rest.
        return parse_config(tree, source, stored=True)

    def tree_of(self, values: dict[str, Value], run: Path, pretrained: Path | None = None) -> dict[str, Any]:
        """Return the training config of a trial as plain keys and values, before it is validated."""
        tree = copy.deepcopy(self.base)
        samples = self.config.objective.importance_samples
        settings: dict[str, Any] = {
            "evaluation.validation_samples": samples,
            "evaluation.importance_samples": samples,
            **self.config.set,
            **values,
            "run": str(run),
            "resume": "auto",
            "cpu_threads": self.config.trial.threads,
        }
        if pretrained is not None:
            settings["pretrained"] = str(pretrained)
        for key, value in settings.items():
            set_key(tree, key, value)
        return tree

    def repeated(self) -> dict[int, int]:
        """Return the trials that train exactly what an earlier trial does, each with that one.

        Empty unless the search is random, because only then the trials are known beforehand.
        """
        if self.config.search != "random":
            return {}
        first: dict[str, int] = {}
        found = {}
        for number, values in enumerate(self.points()):
            config = self.config_of(values, self.folder)
            unread = config.unread
            read = {key: value for key, value in flatten(config) if key not in unread}
            earlier = first.setdefault(json.dumps(read, sort_keys=True), number)
            if earlier != number:
                found[number] = earlier
        return found

    def pretrainings(self) -> dict[str, Config]:
        """Return the pretraining runs that trials share, by fingerprint; empty if every trial has its own."""
        if self.config.search == "random":
            points = self.points()
        else:
            read = {key: d for key, d in self.config.space.items() if matters_to_pretraining(key)}
            if any(not dimension.values or dimension.when for dimension in read.values()):
                return {}
            chosen = itertools.product(*(dimension.values for dimension in read.values()))
            points = [dict(zip(read, values, strict=True)) for values in chosen]
        found = {}
        for values in points:
            config = pretraining_of(self.config_of(values, self.folder), self.folder)
            if config is not None:
                found[fingerprint(config)] = config
        return found if len(found) < self.trials else {}
