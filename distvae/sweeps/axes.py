"""Axes of the plots of a sweep report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from distvae.sweeps.account import TrialRecord
from distvae.sweeps.labels import format_value
from distvae.sweeps.space import Dimension, Value
from distvae.system.errors import printable

# Draw listed values on a logarithmic axis if the largest is at least this many times the smallest.
_WIDE = 15


def plain(text: str) -> str:
    """Escape a text for Plotly, which renders some tags, such as links."""
    return printable(text).replace("&", "&amp;").replace("<", "&lt;")


def _logarithmic(dimension: Dimension) -> bool:
    if dimension.log_uniform:
        return True
    values = _numbers(dimension.values)
    return dimension.numeric and len(values) > 2 and min(values) > 0 and max(values) / min(values) >= _WIDE


def _numbers(values: Iterable[Value]) -> list[float]:
    """Return the numbers among values: all those of a numeric dimension."""
    return [value for value in values if isinstance(value, (int, float))]


def place_of(dimension: Dimension, value: Value) -> float | str:
    return value if dimension.numeric and isinstance(value, (int, float)) else plain(format_value(value))


def axis_of(dimension: Dimension, having: Sequence[TrialRecord], key: str) -> dict[str, Any]:
    if not dimension.numeric:
        names = [plain(format_value(value)) for value in dimension.values]
        return {"type": "category", "categoryorder": "array", "categoryarray": names, "range": [-0.5, len(names) - 0.5]}
    # Population-based training changes values, also to values outside the space.
    values = _numbers([*dimension.extremes, *(entry.trial.values[key] for entry in having)])
    marks = sorted(_numbers(dimension.values))
    low, high = min(values), max(values)
    if _logarithmic(dimension):
        margin = 0.06 * math.log10(high / low) or 0.3
        bounds = [math.log10(low) - margin, math.log10(high) + margin]
        ticks = marks or _ticks(low, high)
        return {"type": "log", "range": bounds, "tickvals": ticks, "ticktext": [f"{value:g}" for value in ticks]}
    axis: dict[str, Any] = {"type": "linear", "range": room(values)}
    if 0 < len(marks) <= 8:
        axis |= {"tickvals": marks, "ticktext": [f"{value:g}" for value in marks]}
    return axis


def room(values: list[float]) -> list[float]:
    """Return the bounds of an axis that shows all values, with a margin."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 0.5
    return [low - margin, high + margin]


def whole_ticks(values: list[int]) -> list[int]:
    """Return at most ten integer ticks."""
    return list(range(min(values), max(values) + 1, math.ceil((max(values) - min(values) + 1) / 10)))


def _ticks(low: float, high: float) -> list[float]:
    """Return about three to eight round ticks for a logarithmic axis."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        found = [digit * 10.0**decade for decade in decades for digit in digits]
        found = [value for value in found if low * 0.999 <= value <= high * 1.001]
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 8)]
    return [low, high]


class _Missing:
    """Stands for the value of a key that a trial does not set."""


MISSING = _Missing()


def coordinate(name: str, dimension: Dimension, values: list[Value | _Missing]) -> dict[str, Any]:
    """Return an axis of parallel coordinates, with trials that lack the key below its end."""
    missing = any(isinstance(value, _Missing) for value in values)
    places: list[float]
    ticks: list[float]
    if not dimension.numeric:
        names = [printable(format_value(value)) for value in dimension.values]  # no tags here
        places = [-1 if isinstance(v, _Missing) else names.index(printable(format_value(v))) for v in values]
        ticks, texts = list(range(len(names))), names
        low, high = -0.5, len(names) - 0.5
    else:
        change = math.log10 if _logarithmic(dimension) else float
        numbers = _numbers([*dimension.extremes, *(value for value in values if not isinstance(value, _Missing))])
        ends = min(numbers), max(numbers)
        if dimension.values and len(dimension.values) <= 8:
            marks = sorted(_numbers(dimension.values))
        elif _logarithmic(dimension):
            marks = _ticks(*ends)
        else:
            marks = [ends[0] + i * (ends[1] - ends[0]) / 4 for i in range(5)]
        ticks, texts = [change(mark) for mark in marks], [f"{mark:.3g}" for mark in marks]
        low, high = change(ends[0]), change(ends[1])
        span = (high - low) or 1.0
        low, high = low - 0.04 * span, high + 0.04 * span
        places = [change(value) if isinstance(value, (int, float)) else low - 0.15 * span for value in values]
    if missing:
        low = min(places)
        ticks, texts = [low, *ticks], ["–", *texts]
    return {"label": name, "values": places, "range": [low, high], "tickvals": ticks, "ticktext": texts}
