"""The table of what lies on lines in latent space."""

from __future__ import annotations

from rich.table import Table

from distvae.evaluation.interpolation import Paths
from distvae.evaluation.scores import Estimate
from distvae.reports.comparison import empty_table


def table(paths: Paths) -> Table:
    """Return a row for each figure."""
    shown = empty_table([f"{paths.pairs:,} pairs of test sentences, {paths.points} points", ""])
    shown.add_row("interpolation smoothness", _share(paths.smoothness))
    shown.add_row("  with the inner sentences shuffled", _share(paths.shuffled))
    shown.add_row("largest step / path", _share(paths.largest_step))
    shown.add_row("different sentences on a path", str(paths.different))
    shown.add_row("edits from end to end", str(paths.distance))
    shown.add_row("pairs whose ends are one sentence, in %", paths.same_ends.percent)
    shown.add_row("PPL of the ends, by train's trigrams", str(paths.ends_ppl))
    shown.add_row("PPL of the sentences between them", str(paths.inner_ppl))
    return shown


def _share(value: Estimate | None) -> str:
    return "–" if value is None else value.text(3)
