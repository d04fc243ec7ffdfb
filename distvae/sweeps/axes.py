"""Axes of the plots of a sweep report."""

from __future__ import annotations

import math

from distvae.sweeps.account import TrialRecord
from distvae.sweeps.labels import format_value
from distvae.sweeps.space import Dimension, Value
from distvae.system.errors import printable

# Draw listed values on a logarithmic axis if the largest is at least this many times the smallest.
_WIDE = 15


def plain(text: str) -> str:
    """Plotly takes a few tags in its texts, links among them."""
    return printable(text).replace("&", "&amp;").replace("<", "&lt;")


def _logarithmic(dimension: Dimension) -> bool:
    if dimension.log_uniform:
        return True
    values = dimension.values or ()
    return dimension.numeric and len(values) > 2 and min(values) > 0 and max(values) / min(values) >= _WIDE


def place_of(dimension: Dimension, value: Value) -> float | str:
    return value if dimension.numeric else plain(format_value(value))


def axis_of(dimension: Dimension, having: list[TrialRecord], key: str) -> dict:
    if not dimension.numeric:
        names = [plain(format_value(value)) for value in dimension.values]
        return {"type": "category", "categoryorder": "array", "categoryarray": names, "range": [-0.5, len(names) - 0.5]}
    # Where trials are may be beyond where they could begin (population-based training).
    values = [*dimension.extremes, *(entry.trial.values[key] for entry in having)]
    low, high = min(values), max(values)
    if _logarithmic(dimension):
        margin = 0.06 * math.log10(high / low) or 0.3
        bounds = [math.log10(low) - margin, math.log10(high) + margin]
        ticks = sorted(dimension.values or _ticks(low, high))
        return {"type": "log", "range": bounds, "tickvals": ticks, "ticktext": [f"{value:g}" for value in ticks]}
    axis = {"type": "linear", "range": room(values)}
    if dimension.values and len(dimension.values) <= 8:
        axis |= {"tickvals": sorted(dimension.values), "ticktext": [f"{value:g}" for value in sorted(dimension.values)]}
    return axis


def room(values: list[float]) -> list[float]:
    """Bounds of an axis with all values in it, and room where there is one value only."""
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.05 * abs(high) or 0.5
    return [low - margin, high + margin]


def whole_ticks(values: list[int]) -> list[int]:
    """Whole numbers for an axis, ten at most."""
    return list(range(min(values), max(values) + 1, math.ceil((max(values) - min(values) + 1) / 10)))


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers for a logarithmic axis, some three to eight."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        found = [digit * 10.0**decade for decade in decades for digit in digits]
        found = [value for value in found if low * 0.999 <= value <= high * 1.001]
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 8)]
    return [low, high]


class _Missing:
    """The value of a key that a trial does not have."""


MISSING = _Missing()


def coordinate(name: str, dimension: Dimension, values: list) -> dict:
    """An axis; trials that have no value on it run below its end."""
    missing = any(value is MISSING for value in values)
    if not dimension.numeric:
        names = [printable(format_value(value)) for value in dimension.values]  # here there are no tags
        places = [-1 if value is MISSING else names.index(printable(format_value(value))) for value in values]
        ticks, texts = list(range(len(names))), names
        low, high = -0.5, len(names) - 0.5
    else:
        change = math.log10 if _logarithmic(dimension) else float
        there = [value for value in values if value is not MISSING]
        ends = [min([*dimension.extremes, *there]), max([*dimension.extremes, *there])]
        if dimension.values and len(dimension.values) <= 8:
            marks = sorted(dimension.values)
        elif _logarithmic(dimension):
            marks = _ticks(*ends)
        else:
            marks = [ends[0] + i * (ends[1] - ends[0]) / 4 for i in range(5)]
        ticks, texts = [change(mark) for mark in marks], [f"{mark:.3g}" for mark in marks]
        low, high = change(ends[0]), change(ends[1])
        span = (high - low) or 1.0
        low, high = low - 0.04 * span, high + 0.04 * span
        places = [low - 0.15 * span if value is MISSING else change(value) for value in values]
    if missing:
        low = min(places)
        ticks, texts = [low, *ticks], ["–", *texts]
    return {"label": name, "values": places, "range": [low, high], "tickvals": ticks, "ticktext": texts}
