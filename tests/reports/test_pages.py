import re
import sys
from pathlib import Path

import jinja2
import pytest

from distvae.reports import pages
from distvae.reports.pages import render
from distvae.system.errors import UserError

TEMPLATES = Path(pages.__file__).parent
REPORTS = [path.name for path in TEMPLATES.glob("*report.html")]


@pytest.fixture
def template(tmp_path, monkeypatch):
    """A template of a folder of its own: ``{{ text }}``."""
    monkeypatch.setattr(pages, "__file__", str(tmp_path / "pages.py"))
    (tmp_path / "one.html").write_text("<p>{{ text }}</p>", encoding="utf-8")
    return "one.html"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a & <b>", "a &amp; &lt;b&gt;"),
        ("red \x1b[31m", "red \\x1b[31m"),
        ("hidden \u202e", "hidden \\u202e"),
        ("λ é 日本", "λ é 日本"),
        (3, "3"),
    ],
)
def test_a_value_is_shown_as_text(template, text, shown):
    assert render(template, text=text) == f"<p>{shown}</p>"


def test_without_jinja2_a_line_says_what_to_install(template, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UserError, match="needs jinja2: pip install jinja2"):
        render(template, text="")


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_takes_its_frame_and_style_from_the_page(name):
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    assert text.startswith('{% extends "page.html" %}')
    assert not re.search(r"<(html|head|body|style)\b", text)
    blocks = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES)).get_template(name).blocks
    assert blocks.keys() == {"title", "style", "body"}
    shared, own = (
        {rule.strip() for rule in re.findall(r"^([^{}%@]+?) \{ ", (TEMPLATES / file).read_text("utf-8"), re.MULTILINE)}
        for file in ("page.html", name)
    )
    assert {"body", "h1", "table"} <= shared
    assert not own & shared  # no rule for the same elements twice


def test_there_are_two_reports():
    assert len(REPORTS) == 2
