"""The tables of what probes and clusters read from latents."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from distvae.evaluation.probes import Kind
from distvae.evaluation.scores import fixed
from distvae.reports.comparison import cell, empty_table
from distvae.runs.probing import Column, Probe, Probes


def parts(found: Probes) -> Iterator[Table | str]:
    """Yield the tables and remarks."""
    columns = found.columns.values()
    sizes = sorted({count for column in columns for count in column.probes[0].accuracy})
    yield _accuracies(found, "z", "labels read from z, in %")
    learnt = f"{sizes[0]:,}" if len(sizes) == 1 else "as many"
    yield (
        f"accuracy on {found.split} of linear probes that learn from z of {learnt} labelled sentences; chance: the most"
        " frequent label"
    )
    if any(probe.kind == "mean" for column in columns for probe in column.probes):
        yield ""
        yield _accuracies(found, "mean", "labels read from posterior means, in %")
        yield "the same from posterior means, standardised: also differences that are too small for the decoder to see"
        yield ""
        yield _clusters(found)
        yield "k-means of posterior means with a cluster for each label; in brackets: the NMI with shuffled labels"
    yield from found.notes


def _accuracies(found: Probes, kind: Kind, title: str) -> Table:
    """Return a row for each column of labels and number of labelled sentences."""
    shown = empty_table([title, "chance", *map(_name, _of(found, kind))])
    for name, column in found.columns.items():
        sizes = sorted(column.probes[0].accuracy)
        for size in sizes:
            title = name if len(sizes) == 1 else f"{name}, {size:,} labels"
            values = [column.chance, *(probe.accuracy[size] for probe in _shown(column, kind))]
            shown.add_row(cell(title), *(value.percent for value in values))
    return shown


def _clusters(found: Probes) -> Table:
    """Return a row for each column of labels."""
    titles = [f"{_name(probe)}: {what}" for probe in _of(found, "mean") for what in ("NMI", "accuracy")]
    shown = empty_table(["clusters, in %", *titles])
    for name, column in found.columns.items():
        values = []
        for probe in _shown(column, "mean"):
            if (each := probe.clusters) is not None:
                values += [f"{fixed(100 * each.nmi, 1)} ({fixed(100 * each.nmi_by_chance, 1)})"]
                values += [each.accuracy.percent]
        shown.add_row(cell(name), *values)
    return shown


def _of(found: Probes, kind: Kind) -> list[Probe]:
    return _shown(next(iter(found.columns.values())), kind)


def _shown(column: Column, kind: Kind) -> list[Probe]:
    """Return the probes of a kind, and that of the bag of words."""
    return [probe for probe in column.probes if probe.kind in (kind, "words")]


def _name(probe: Probe) -> str:
    return probe.model or "bag of words"
