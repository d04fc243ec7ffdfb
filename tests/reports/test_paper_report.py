import json
import re
import shutil
import sys
from html import unescape
from html.parser import HTMLParser

import pytest

from distvae import cli
from distvae.evaluation.decoding import Decoding
from distvae.evaluation.generation import decode, interpolation, prior_draws
from distvae.reports import report as reports
from distvae.reports.paper_report import SENTENCES
from distvae.reports.report import make_report, write
from distvae.runs.checkpoints import load_export
from distvae.system.errors import UserError
from tests.paper_folders import write_run, write_table

ROWS = ["AE", "KLA", "PT + KLA", "PT + KLA + FB", "PT + KLA + SFB"]


@pytest.fixture(scope="module")
def one_seed(tmp_path_factory):
    """The runs of all rows under one seed, and the folder of their report. Tests leave both as they are."""
    folder = tmp_path_factory.mktemp("report")
    return write_table(folder / "runs"), folder / "pages"


@pytest.fixture(scope="module", autouse=True)
def report(one_seed):
    """Their report, whose pages are written."""
    return write(*one_seed)


class Page(HTMLParser):
    """Tables, words and what a browser would load of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.loads, self.tables, self.words = [], [], ""
        self._cell = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._cell = True

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        self.words += data
        if self._cell:
            self.tables[-1][-1][-1] += data


def tables(markdown: str) -> list[list[list[str]]]:
    found = []
    for block in markdown.split("\n\n"):
        if block.startswith("|"):
            rows = [line.split("|")[1:-1] for line in block.splitlines()]
            rows = [[unescape(cell.strip()) for cell in row] for row in rows]
            found.append([rows[0], *rows[2:]])
    return found


# -- Table 1 -----------------------------------------------------------------------------------------------------------


def test_table_1_has_our_figures_the_papers_and_these_corrected(one_seed):
    _, pages = one_seed
    table = tables((pages / "report.md").read_text())[0]
    assert [row[0] for row in table] == ["method"] + [
        name for row in ROWS for name in (row, "paper, as printed", "paper, corrected")
    ]
    rows = {row: table[1 + 3 * i : 4 + 3 * i] for i, row in enumerate(ROWS)}
    printed, right = rows["KLA"][1:]
    assert printed[1:] == ["37.12", "49.12", "36.04", "0.02", "36.06", "43.81", "–", "–", "–"]
    assert right[1:] == ["35.73 to 36.06", "42.47 to 43.95", "36.04", "0.02", "36.06", "43.81", "–", "–", "–"]
    assert [row[3] for row in rows["AE"][1:]] == ["27.07", "6.77"]


def test_our_figures_are_those_of_the_results_with_their_errors(one_seed):
    runs, pages = one_seed
    table = tables((pages / "report.md").read_text())[0]
    for run, row in zip(runs, table[1::3], strict=True):
        scores = json.loads((run / "results.json").read_text())["scores"]
        for name, cell in zip(("nll", "ppl", "re", "kl", "neg_elbo", "elbo_ppl"), row[1:7], strict=True):
            expected = None if row[0] == "AE" and "elbo" in name else scores[name]
            assert cell == ("–" if expected is None else f"{expected['mean']:.2f} ± {expected['standard_error']:.2f}")
        assert row[7] == f"{scores['active_units']} of 4"
        assert row[8].startswith(f"{scores['mutual_information']['mean']:.2f}")
        assert row[9] == ("–" if scores["effective_samples"] is None else "9")


def test_several_seeds_show_their_spread(tmp_path):
    report = make_report(write_table(tmp_path, seeds=2, rows=("kla",)))
    assert "standard deviation over seeds" in report.parts[0].text
    assert re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d \(\d+\.\d\d\)", report.parts[0].lines[0].cells[1])
    assert report.parts[0].lines[0].cells[7] == "0 of 4 (0.0)"
    assert "With one seed" not in report.parts[1].text


# -- Claims, figure, sentences, runs -----------------------------------------------------------------------------------


def test_every_claim_has_a_verdict(one_seed):
    _, pages = one_seed
    table = tables((pages / "report.md").read_text())[1]
    assert len(table) == 12
    assert {row[1] for row in table[1:]} == {"held"}


def test_table_2_decodes_lines_between_the_same_draws_for_all(one_seed):
    runs, pages = one_seed
    head, *rows = tables((pages / "report.md").read_text())[2]
    assert head[1:] == ROWS
    assert [row[0] for row in rows] == [*map(str, range(1, 12)), "", *map(str, range(1, 12))]
    for column, run in enumerate(runs, 1):
        export = load_export(run)
        model = export.model("cpu")
        for seed, first in ((0, 0), (1, 12)):
            line = interpolation(*prior_draws(model, 2, seed), 11)
            expected = decode(model, line, export.vocabulary, Decoding())
            assert [row[column] for row in rows[first : first + 11]] == [" ".join(text.split()) for text in expected]


def test_captions_are_reconstructed_from_fresh_ones_and_others_from_built_in_or_given_ones(report, tmp_path):
    rebuilt = next(part for part in report.parts if part.title == "Reconstructions")
    assert len(rebuilt.lines) == 5
    assert not {line.cells[0] for line in rebuilt.lines} & set(SENTENCES)
    write_run(tmp_path / "kla", "kla", data={"path": "elsewhere"})
    for given, expected in ((), SENTENCES), (("A man sleeps .",), ("A man sleeps .",)):
        rebuilt = next(part for part in make_report([tmp_path / "kla"], given).parts if part.title == "Reconstructions")
        assert tuple(line.cells[0] for line in rebuilt.lines) == expected


def test_runs_that_still_train_are_told_of_too(tmp_path):
    write_run(tmp_path / "kla", "kla", finished=False)
    report = write([tmp_path / "kla"], tmp_path / "pages")
    assert report.summary == "0 of 1 runs have finished."
    assert report.parts[0].lines[0].cells == ["KLA", *["–"] * 9]
    assert [part.title for part in report.parts] == ["Table 1", "What the paper claims", "Figure 2", "The runs"]
    assert report.parts[-1].lines[0].cells[4:6] == ["16 epochs so far", "–"]


# -- The pages ---------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_beside_itself_and_tells_what_the_text_tells(one_seed):
    _, pages = one_seed
    page = Page((pages / "report.html").read_text())
    assert all(load.startswith("data:") for load in page.loads)
    assert sum(load.startswith("data:image/svg+xml") for load in page.loads) == 1
    text = (pages / "report.md").read_text()
    for shown, written in zip(page.tables, tables(text), strict=True):
        assert [[" ".join(cell.split()) for cell in row] for row in shown] == written


def test_what_folders_and_sentences_are_called_is_no_markup(tmp_path):
    run = tmp_path / "<b>a|b</b>"
    write_run(run, "kla", data={"path": "elsewhere"})
    write([run], tmp_path / "pages", ["A <i>man</i> | sleeps ."])
    page = (tmp_path / "pages" / "report.html").read_text()
    assert "<b>a" not in page
    assert "<i>man" not in page
    text = (tmp_path / "pages" / "report.md").read_text()
    assert "a&#124;b" in text
    assert "A &#60;i&#62;man&#60;/i&#62; &#124; sleeps ." in text
    assert "<b>a" not in text


# -- The command -------------------------------------------------------------------------------------------------------


def test_the_command_prints_table_1_and_the_claims_and_where_the_page_is(one_seed, tmp_path, capsys):
    runs, pages = one_seed
    assert cli.main(["report", *map(str, runs), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert [line.split("  ")[0] for line in said.splitlines() if line.startswith(tuple(ROWS))] == ROWS
    assert said.count(" held ") == 11
    assert said.splitlines()[-1] == str(tmp_path / "report.html")
    for path in pages.iterdir():  # the same runs give the same pages
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_the_command_prints_json(report, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(reports, "write", lambda *arguments: asked.append(arguments) or report)
    assert cli.main(["report", "a", "b", "--out", "c", "--sentence", "d", "--json"]) == 0
    assert asked == [(["a", "b"], "c", ["d"])]
    found = json.loads(capsys.readouterr().out)
    assert [claim["verdict"] for claim in found["claims"]] == ["held"] * 11
    assert [row[0] for row in found["tables"]["Table 1"][1::3]] == ROWS


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{folder}/nothing"], "nothing: is not a run folder"),
        (["{run}", "--out", "{run}/config.yaml"], "config.yaml: cannot be written"),
        (["{run}", "--sentence", ""], "--sentence: is empty"),
    ],
)
def test_what_cannot_be_used_is_one_line(one_seed, tmp_path, capsys, arguments, said):
    run = shutil.copytree(one_seed[0][1], tmp_path / "run")
    assert cli.main(["report", *(argument.format(folder=tmp_path, run=run) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named(one_seed, tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    with pytest.raises(UserError, match=f"{missing}: pip install"):
        write([one_seed[0][1]], tmp_path / "pages")
    assert not (tmp_path / "pages").exists()


def test_an_autoencoder_has_no_nll_to_ask_for(one_seed, capsys):
    assert cli.main(["evaluate", str(one_seed[0][0]), "--importance-samples", "5"]) == 2
    assert "its z has no prior" in capsys.readouterr().err
