"""A report as pages: ``report.html``, which is self-contained, ``report.md`` with its figure, and terminal tables."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from distvae.reports.comparison import cell
from distvae.reports.pages import render
from distvae.system.files import write_bytes, write_text, writing
from distvae.system.markdown import escaped, markdown_table

Mark = Literal["good", "bad", "verdict"]


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    cells: list[str]
    aside: bool = False  # shown for comparison, in grey
    marks: Mapping[int, Mark] = field(default_factory=dict)  # of cells, by their column


@dataclass(frozen=True)
class Panel:
    """A part of a figure, as an SVG element that has the page's colours and fits any width."""

    title: str
    svg: str


@dataclass(frozen=True)
class Figure:
    """A figure as a file, and as panels of the page if it has any."""

    file: str
    svg: bytes
    caption: str
    panels: tuple[Panel, ...] = ()
    style: str = ""  # CSS of the panels

    @property
    def source(self) -> str:
        """The file as the source of an image."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode("ascii")


@dataclass(frozen=True)
class Part:
    """A section of the report."""

    title: str
    text: str = ""
    header: list[str] | None = None
    lines: Sequence[Line] = ()
    notes: tuple[str, ...] = ()
    figure: Figure | None = None
    numbers: bool = False  # whether the columns after the first are numbers


@dataclass(frozen=True)
class Report:
    """The content of the pages."""

    title: str
    summary: str
    parts: list[Part]
    main_parts: int  # how many of them a terminal shows
    data: dict[str, Any] = field(default_factory=dict)  # for JSON
    files: dict[str, str] = field(default_factory=dict)  # texts of further files, by name


def write(report: Report, target: Path) -> None:
    """Write the pages and their files to a folder.

    Raises:
        UserError: they cannot be written.
    """
    pages = {"report.md": markdown(report), "report.html": html(report), **report.files}
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
        for part in report.parts:
            if part.figure:
                write_bytes(target / part.figure.file, part.figure.svg)
        for name, text in pages.items():
            write_text(target / name, text)


def markdown(report: Report) -> str:
    """Return the text of ``report.md``, which refers to the figure beside it."""
    blocks = [f"# {report.title}", escaped(report.summary)]
    for part in report.parts:
        blocks += [f"## {part.title}", part.text]
        if part.figure:
            blocks += [f"![{part.title}]({part.figure.file})", part.figure.caption]
        if part.header:
            blocks.append(markdown_table(part.header, [line.cells for line in part.lines]))
        blocks.append("\n".join(f"- {escaped(note)}" for note in part.notes))
    return "\n\n".join(block for block in blocks if block) + "\n"


def html(report: Report) -> str:
    """Return the text of ``report.html``, which contains the figure."""
    return render("report.html", report=report)


def as_dict(report: Report) -> dict[str, Any]:
    """Return the report as plain values for JSON."""
    tables = {part.title: [part.header, *(line.cells for line in part.lines)] for part in report.parts if part.header}
    return {"summary": report.summary, **report.data, "tables": tables}


def tables(report: Report) -> list[Table | str]:
    """Return the main tables for a terminal."""
    shown: list[Table | str] = [""]
    for part in report.parts[: report.main_parts]:
        table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for number, head in enumerate(part.header or ()):
            table.add_column(cell(head), justify="right" if part.numbers and number else "left")
        for line in part.lines:
            table.add_row(*map(cell, line.cells), style="dim" if line.aside else None)
        shown += [table, part.text, ""]
    return shown
