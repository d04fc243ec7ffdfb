"""Write the report of runs: the paper's, if all their methods are the paper's, and otherwise the field's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distvae.reports import document, field_report, paper_report
from distvae.reports.document import Report
from distvae.reports.methods import gather
from distvae.reports.paper import TABLE_1


def write(folders: Sequence[str | Path], target: str | Path, sentences: Sequence[str] = ()) -> Report:
    """Write ``report.html``, which is self-contained, and ``report.md`` with its figure to a folder.

    Args:
        folders: run folders.
        sentences: to reconstruct; empty: built-in ones, in the paper's report alone.

    Raises:
        UserError: a folder is not a run folder or is damaged, the runs have different sentences, or the pages cannot be
            written.
    """
    report = make_report(folders, sentences)
    document.write(report, Path(target))
    return report


def make_report(folders: Sequence[str | Path], sentences: Sequence[str] = ()) -> Report:
    """Compare runs; see ``write``."""
    methods = gather(folders)
    if all(method.kind in TABLE_1 for method in methods):
        return paper_report.make_report(methods, sentences)
    return field_report.make_report(methods, sentences)
