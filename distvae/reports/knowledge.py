"""What z knows: the labels that probes read from the latent of each method, in the report of its runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from distvae.evaluation.metrics import METRICS
from distvae.evaluation.scores import Estimate, fixed
from distvae.reports.document import Line, Part
from distvae.reports.methods import FinishedRun, Method, Score
from distvae.reports.overview import shown
from distvae.runs import probed, probing
from distvae.runs.probing import Column

# The table has the accuracies from fewer labels, too, if there are at most so many.
_WIDEST = 8

_MISSING = "are missing"

_TEXT = (
    "Accuracy in % on {split} of linear probes that learn from z of {learnt} labelled sentences, ± standard error; in"
    " parentheses: standard deviation over seeds. Chance: the most frequent label. Bag of words: the same probe on"
    " counts of each token."
)
_NOTE = (
    "Of several seeds, the accuracy is their mean, and ± the mean of their errors, which is at least the error of their"
    " mean. z learns from one draw for each sentence and is read at posterior means; docs/probes.md has the details."
)


@dataclass(frozen=True)
class Reading:
    """An accuracy of the table.

    Attributes:
        column: of labels.
        size: labelled sentences that probes learn from.
        every: whether these are all that there are.
        chance: accuracy of naming the most frequent label.
        words: accuracy from a bag of words; None: not probed from so many.
        methods: accuracy from z, by the name of a method.
    """

    column: str
    size: int
    every: bool
    chance: Estimate
    words: Estimate | None
    methods: dict[str, Score]

    @property
    def title(self) -> str:
        return self.column if self.every else f"{self.column}, {self.size:,} labels"


@dataclass(frozen=True)
class Knowledge:
    """What the latents of a report know.

    Attributes:
        readings: by column of labels, from the most labelled sentences on.
        notes: runs whose probes are missing or do not count; empty if no run has any.
    """

    split: str
    readings: tuple[Reading, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Own:
    """The probes of a run's latent, by column of labels."""

    method: str
    run: str
    columns: dict[str, Column]
    model: str  # as the probes name it


def gather(methods: Sequence[Method]) -> Knowledge:
    """Collect the probes of finished runs that are of their weights and test sentences.

    Raises:
        UserError: a ``probes.json`` is damaged.
    """
    found: list[_Own] = []
    left_out: dict[str, list[str]] = {}
    for method in methods:
        for run in () if method.config.language_model else method.finished:
            own = _of_run(method.name, run)
            if isinstance(own, _Own):
                found.append(own)
            else:
                left_out.setdefault(own, []).append(str(run.folder))
    if not found and left_out.keys() <= {_MISSING}:
        return Knowledge("", (), ())
    names = dict.fromkeys(name for own in found for name in own.columns)
    readings: list[Reading] = []
    for name in names:
        first = next(own.columns[name] for own in found if name in own.columns)
        alike = [own for own in found if name in own.columns and _size(own.columns[name]) == _size(first)]
        lacking = [own.run for own in found if own not in alike]
        if lacking:
            left_out[f"are not of {name}, or of other labels of that name"] = lacking
        readings += _readings(name, alike)
    notes = [f"Without probes that count: {', '.join(runs)}, whose probes {why}." for why, runs in left_out.items()]
    split = next((method.finished[0].results.split for method in methods if method.finished), "")
    return Knowledge(split, tuple(readings), tuple(notes))


def _of_run(method: str, run: FinishedRun) -> _Own | str:
    """Return the probes of a run, or why they do not count."""
    found = probing.load(run.folder)
    if found is None:
        return _MISSING
    why = probed.flaw(found, run.folder, run.results)
    return why or _Own(method, str(run.folder), found.columns, probed.of_model(found, run.folder))


def _size(column: Column) -> tuple[int, int, int]:
    return column.classes, column.train, column.test


def _readings(name: str, found: Sequence[_Own]) -> Iterator[Reading]:
    """Yield the readings of a column of labels, from the most labelled sentences on."""
    column = found[0].columns[name]
    values: dict[int, dict[str, list[Estimate]]] = {}
    words: dict[int, Estimate] = {}
    for own in found:
        for probe in own.columns[name].probes:
            for size, accuracy in probe.accuracy.items():
                if probe.kind == "words":
                    words[size] = accuracy
                elif probe.kind == "z" and probe.model == own.model:
                    values.setdefault(size, {}).setdefault(own.method, []).append(accuracy)
    for size in sorted(values, reverse=True):
        methods = {method: _over_seeds(each) for method, each in values[size].items()}
        yield Reading(name, size, size == column.train, column.chance, words.get(size), methods)


def _over_seeds(values: Sequence[Estimate]) -> Score:
    """Return the mean of an accuracy over seeds.

    The seeds are tested on the same sentences, so their errors need not shrink with their number: the mean of them is
    at least the error of the mean.
    """
    means = [value.mean for value in values]
    errors = [value.standard_error for value in values if value.standard_error is not None]
    error = sum(errors) / len(errors) if errors else None
    return Score(float(np.mean(means)), error, float(np.std(means, ddof=1)) if len(means) > 1 else None)


def part(methods: Sequence[Method], found: Knowledge) -> Part | None:
    """Return the table of what z knows: a row for each method that has a latent. None if nothing is known."""
    if not found.readings:
        return None
    columns = [reading for reading in found.readings if reading.every or len(found.readings) <= _WIDEST]
    sizes = sorted({reading.size for reading in columns})
    learnt = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[-1]:,} (all) or fewer"
    lines = []
    for method in methods:
        if method.config.language_model or not any(method.name in reading.methods for reading in columns):
            continue
        cells = [_percent(reading.methods.get(method.name)) for reading in columns]
        lines.append(Line([method.name, shown(method.score("mutual_information")), *cells]))
    chance = [_percent(reading.chance) for reading in columns]
    words = [_percent(reading.words) for reading in columns]
    lines += [Line(["chance", "–", *chance], aside=True), Line(["bag of words", "–", *words], aside=True)]
    text = _TEXT.format(split=found.split, learnt=learnt)
    if found.notes:
        text += " Some runs have no probes that count; the pages list them."
    header = ["method", METRICS["mutual_information"].title, *(reading.title for reading in columns)]
    return Part("What z knows", text, header, lines, (_NOTE, *found.notes), numbers=True)


def values(method: Method, found: Knowledge) -> dict[str, float | None]:
    """Return a method's accuracies, 0 to 1, as plain values: ``probe.COLUMN`` from all labels, ``probe.COLUMN.N`` from
    N, with their errors and standard deviations over seeds, chance, and the bag of words."""
    row: dict[str, float | None] = {}
    for reading in found.readings:
        key = f"probe.{reading.column}" if reading.every else f"probe.{reading.column}.{reading.size}"
        score = reading.methods.get(method.name)
        row[key] = None if score is None else score.mean
        row[f"{key}_error"] = None if score is None else score.error
        row[f"{key}_spread"] = None if score is None else score.spread
        row[f"{key}_words"] = None if reading.words is None else reading.words.mean
        if reading.every:
            row[f"{key}_chance"] = reading.chance.mean
    return row


def _percent(value: Score | Estimate | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, Estimate):
        return value.percent
    spread = "" if value.spread is None else f" ({fixed(100 * value.spread, 1)})"
    return f"{Estimate(value.mean, value.error).percent}{spread}"
