"""The table of what comes back in reconstructions."""

from __future__ import annotations

from rich.table import Table

from distvae.evaluation.reconstruction import Reconstruction
from distvae.evaluation.scores import fixed
from distvae.reports.comparison import empty_table

# Places that have a row.
PLACES = 20

PARTS = {"first": "first third of the words", "middle": "middle third", "last": "last third"}

TITLES = {"own": "its reconstruction", "next": "that of the next sentence"}


def table(found: dict[str, Reconstruction]) -> Table:
    """Return a row for each figure, in percent, and a column for each set of reconstructions."""
    columns = list(found.values())
    shown = empty_table([f"{columns[0].sentences:,} sentences, in %", *(TITLES[name] for name in found)])
    shown.add_row("the same sentence", *(each.exact.percent for each in columns))
    shown.add_row("the same length", *(each.length.percent for each in columns))
    shown.add_row("BLEU", *(fixed(100 * each.bleu, 1) for each in columns))
    shown.add_row("tokens in their places", *(each.tokens.percent for each in columns))
    for name, title in PARTS.items():
        parts = [each.parts[name] for each in columns]
        shown.add_row(f"  {title}", *("–" if part is None else part.percent for part in parts))
    for place in range(min(PLACES, len(columns[0].positions))):
        shown.add_row(f"  token {place + 1}", *(each.positions[place].percent for each in columns))
    return shown
