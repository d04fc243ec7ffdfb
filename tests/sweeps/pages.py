"""A sweep report as tests read it: its Markdown table, and what a browser would load of its page."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path


def cells(text: str, heading: str = "rank") -> list[dict[str, str]]:
    """The rows of the Markdown table that begins with this heading."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


class SweepPage(HTMLParser):
    """What a browser would load of a page, its table of trials, its pictures and its words."""

    def __init__(self, text: str):
        super().__init__()
        self.loads, self.links, self.rows, self.figures, self.words = [], [], [], [], ""
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        if tag == "a":
            self.links.append(found["href"])
        else:
            self.loads += [found[name] for name in ("src", "href", "srcset", "action", "data") if name in found]
        if tag == "table":
            self._trials = found.get("id") == "trials"
        if tag == "tr" and "data-trial" in found:
            self.rows.append([])
        if tag not in ("meta", "link", "wbr"):
            self._inside.append("figure" if found.get("class") == "figure" else tag)

    def handle_endtag(self, tag):
        self._inside.pop()

    def handle_data(self, data):
        last = self._inside[-1] if self._inside else ""
        if last == "figure":
            self.figures.append(json.loads(data))
        elif "td" in self._inside[-2:] and self._trials:  # which may hold a link
            self.rows[-1].append(data)
        if last == "style":
            assert "url(" not in data
            assert "@import" not in data
        elif last != "script":
            self.words += data


def page(folder: Path) -> SweepPage:
    return SweepPage((folder / "sweep.html").read_text(encoding="utf-8"))
