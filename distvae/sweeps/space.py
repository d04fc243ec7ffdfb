"""The search space of a sweep: the values of each key, and how they are drawn."""

from __future__ import annotations

import math
from typing import Annotated, Protocol

import numpy as np
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as checked

from distvae.system.settings import RULES

Value = bool | int | float | str | None


class Chance(Protocol):
    """Source of the values of a trial: a random generator, or a searcher that learns from earlier trials."""

    def choice(self, key: str, values: tuple[Value, ...]) -> Value: ...

    def uniform(self, key: str, low: float, high: float, log: bool) -> float: ...

    def integer(self, key: str, low: int, high: int) -> int: ...


class Seeded:
    """Draw values from a seeded random generator.

    Args:
        seed: numbers that together seed the generator.
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
    """The values of one key. Exactly one of the first five fields is set."""

    # Try each of these values, combined with every value of every other grid.
    grid: Values | None = None
    # Draw one of these values.
    choice: Values | None = None
    # Draw a number from this range, uniformly, or uniformly in its logarithm.
    uniform: Range | None = None
    log_uniform: Range | None = None
    # Draw an integer from this range, both ends included.
    integer: tuple[int, int] | None = None
    # Set the key only where another key has this value, or one of these: `when: {kl.policy: soft_free_bits}`.
    when: dict[str, Value | list[Value]] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
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
                raise ValueError(f"{kinds[0]}: {list(values)}: lists a value twice")
        return self

    @property
    def values(self) -> tuple[Value, ...]:
        """All values of a grid or a choice; empty for a range."""
        return self.grid or self.choice or ()

    @property
    def extremes(self) -> tuple[Value, ...]:
        """Values between which all others lie."""
        return self.values or self.uniform or self.log_uniform or self.integer or ()

    @property
    def numeric(self) -> bool:
        """Whether all values are numbers."""
        return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in self.extremes)

    def draw(self, key: str, chance: Chance) -> Value:
        """Draw a value.

        Raises:
            ValueError: the dimension is a grid.
        """
        if self.choice:
            return chance.choice(key, self.choice)
        if self.integer:
            return chance.integer(key, *self.integer)
        if self.log_uniform:
            return chance.uniform(key, *self.log_uniform, log=True)
        if self.uniform:
            return chance.uniform(key, *self.uniform, log=False)
        raise ValueError(f"{key}: a grid is listed, not drawn")
