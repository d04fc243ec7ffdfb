"""A sweep: its specification and base config, the values of its trials, and their training configs."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distvae.config.load import (
    flatten,
    parse_config,
    set_key,
)
from distvae.config.schema import Config
from distvae.sweeps.pretraining import fingerprint, matters_to_pretraining, pretraining_of
from distvae.sweeps.space import Chance, Seeded, Value
from distvae.sweeps.specification import SweepConfig

# Random draws with which a sweep is checked before it starts.
_SAMPLES = 200


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
        return [self.draw(Seeded(number), grid[number % len(grid)]) for number in range(_SAMPLES)]

    def samples(self) -> list[dict[str, Value]]:
        """The values of all trials, or where these are not known beforehand, of some that there may be."""
        return self.points() if self.config.search == "random" else self.some()

    def _applies(self, key: str, values: dict[str, Value]) -> bool:
        when = self.config.space[key].when or {}
        return all(
            (values[other] if other in values else self.fixed(other))
            in (wanted if isinstance(wanted, list) else [wanted])
            for other, wanted in when.items()
        )

    def fixed(self, key: str) -> Value:
        """A key's value in a trial that does not set it; nothing for a swept one, which is left out there."""
        return None if key in self.config.space else dict(flatten(self.config_of({}, self.folder)))[key]

    def config_of(self, values: dict[str, Value], run: Path, pretrained: Path | None = None) -> Config:
        """The training config of a trial.

        Raises:
            ConfigError: the values do not go together.
        """
        tree = self.tree_of(values, run, pretrained)
        said = ", ".join(f"{key}={value}" for key, value in values.items())
        # If the policy is swept, other policies do not read what the base sets for one of them: see `check_read`.
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

    def pretrainings(self) -> dict[str, Config]:
        """The pretrainings that several trials share, by their fingerprints; none where each trial has its own."""
        if self.config.search == "random":
            points, trials = self.points(), self.trials
        else:
            kept = {key: d for key, d in self.config.space.items() if matters_to_pretraining(key)}
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
