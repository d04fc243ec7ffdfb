"""The tables of what a model gains over a baseline."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from distvae.evaluation.gain import Gained
from distvae.evaluation.scores import fixed
from distvae.reports.comparison import empty_table
from distvae.runs.gain import GainOverBaseline
from distvae.system.plural import counted

# Positions that have a row.
PLACES = 20


def parts(found: GainOverBaseline) -> Iterator[Table | str]:
    """Yield the tables and remarks."""
    gain, (name, baseline) = found.gain, found.names
    shown = empty_table([f"{found.split} sentences, NLL in nats", "number", baseline, name, "gain"])
    for title, row in [("all", gain.sentences), *((_length(row), row) for row in gain.lengths)]:
        shown.add_row(title, *_values(row))
    yield shown
    yield ""
    effective = [(owner, each) for owner, each in zip(found.names, gain.effective, strict=True) if each is not None]
    heads = ["effective" if len(effective) == 1 else f"effective, {owner}" for owner, _ in effective]
    shown = empty_table([f"tokens of {found.split}, NLL in nats", "number", baseline, name, "gain", *heads])
    for place, row in enumerate(gain.positions[:PLACES]):
        shown.add_row(f"token {row.first}", *_values(row), *(fixed(each[place], 1) for _, each in effective))
    yield shown
    if len(gain.positions) > PLACES:
        yield f"the file has {counted(len(gain.positions) - PLACES, 'more position')}"
    if effective:
        yield (
            f"K = {found.samples:,} draws of z between prior and posterior; effective: of these, for the sentence up to"
            " and including the token"
        )


def _length(row: Gained) -> str:
    return f"  {counted(row.first, 'token') if row.first == row.last else f'{row.first}–{row.last} tokens'}"


def _values(row: Gained) -> list[str]:
    return [f"{row.count:,}", str(row.baseline), str(row.nll), str(row.gain)]
