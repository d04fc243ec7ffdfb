import pytest

from distvae.reports.document import Figure, Line, Panel, Part, Report, as_dict, html, markdown, tables, write
from distvae.system.errors import UserError

LINES = [Line(["a|b", "1.00"], marks={1: "bad"}), Line(["c", "–"], aside=True)]


@pytest.fixture
def report():
    drawn = Figure("f.svg", b"<svg/>", "How it went.", (Panel("<one>", "<svg class='curves'></svg>"),), ".curves {}")
    parts = [
        Part("Numbers", "In nats.", ["method", "NLL"], LINES, ("a note",), numbers=True),
        Part("Curves", figure=drawn),
    ]
    return Report("Title", "Summary.", parts, 1, {"more": 3}, {"x.csv": "1,2\n"})


def test_markdown_has_every_part_and_escapes_cells(report):
    assert markdown(report) == (
        "# Title\n\nSummary.\n\n## Numbers\n\nIn nats.\n\n| method | NLL |\n| --- | --- |\n| a&#124;b | 1.00 |\n"
        "| c | – |\n\n- a note\n\n## Curves\n\n![Curves](f.svg)\n\nHow it went.\n"
    )


def test_the_page_marks_cells_and_shows_panels_instead_of_the_image(report):
    page = html(report)
    assert '<td class="bad">1.00</td>' in page
    assert '<tr class="aside">' in page
    assert "<figcaption>&lt;one&gt;</figcaption><svg class='curves'></svg>" in page
    assert "<img" not in page
    assert ".curves {}" in page


def test_json_has_the_tables_and_what_else_there_is(report):
    tables = {"Numbers": [["method", "NLL"], ["a|b", "1.00"], ["c", "–"]]}
    assert as_dict(report) == {"summary": "Summary.", "more": 3, "tables": tables}


def test_a_terminal_gets_the_main_parts_alone(report):
    shown = tables(report)
    assert [column.header.plain for column in shown[1].columns] == ["method", "NLL"]
    assert shown[2:] == ["In nats.", ""]


def test_all_files_are_written_to_the_folder(report, tmp_path):
    write(report, tmp_path / "pages")
    assert {path.name for path in (tmp_path / "pages").iterdir()} == {"report.html", "report.md", "f.svg", "x.csv"}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: cannot be written"):
        write(report, tmp_path / "file")
