import csv
import json
import re

import pytest

from distvae import cli
from distvae.reports.report import make_report, write
from tests.paper_folders import SIZES, write_run, write_table
from tests.reports.test_paper_report import Page, tables

ROWS = ("ae", "kla", "lstm_lm", "cyclical", "beta", "mdr")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Runs of two seeds and the folder of their report, which tests leave as they are."""
    folder = tmp_path_factory.mktemp("field")
    runs = write_table(folder / "runs", seeds=2, rows=ROWS)
    write(runs, folder / "pages")
    return runs, folder / "pages"


def rows_of(pages):
    head, *rows = tables((pages / "report.md").read_text())[0]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def test_every_method_has_its_figures(table):
    rows = rows_of(table[1])
    assert list(rows) == ["cyclical KLA", "KLA", "LSTM-LM", "MDR", "β = 0.4", "AE"]
    row = rows["cyclical KLA"]
    assert row["rank"] == "1"
    assert re.fullmatch(r"\+0\.\d\d ± 0\.\d\d", row["gain over the LM"])
    assert re.fullmatch(r"35\.\d\d ± 0\.\d\d \(0\.\d\d\)", row["NLL"])
    assert (row["z pays"], row["latent"], row["seeds"]) == ("yes", "alive", "2")
    assert row["KL(q(z)‖p)"].startswith("0.48 ± ")
    assert row["gap"].startswith("0.80 ± ")
    assert rows["β = 0.4"]["gain over the LM"].startswith("−0.4")
    assert (rows["β = 0.4"]["z pays"], rows["β = 0.4"]["latent"]) == ("no", "hollow")


def test_a_language_model_and_an_autoencoder_leave_out_what_they_do_not_have(table):
    rows = rows_of(table[1])
    assert {key for key, cell in rows["LSTM-LM"].items() if cell == "–"} == {
        "gain over the LM", "z pays", "KL", "MI", "AU", "KL(q(z)‖p)", "−ELBO", "gap",
    }  # fmt: skip
    assert rows["LSTM-LM"]["latent"] == "no z"
    assert {key for key, cell in rows["AE"].items() if cell == "–"} == {
        "rank", "NLL", "gain over the LM", "z pays", "KL(q(z)‖p)", "−ELBO", "gap", "PPL",
    }  # fmt: skip


def test_the_csv_and_json_have_what_the_table_rounds(table, capsys):
    runs, pages = table
    with (pages / "report.csv").open(encoding="utf-8") as file:
        found = {row["method"]: row for row in csv.DictReader(file)}
    shown = rows_of(pages)
    assert list(found) == list(shown)
    for name, row in found.items():
        if row["nll"]:
            nll, error, spread = (float(row[key]) for key in ("nll", "nll_error", "nll_spread"))
            assert shown[name]["NLL"] == f"{nll:.2f} ± {error:.2f} ({spread:.2f})"
        assert row["seeds"] == "0 1"
    assert cli.main(["report", *map(str, runs), "--out", str(pages), "--json"]) == 0
    for method in json.loads(capsys.readouterr().out)["methods"]:
        assert found[method["method"]]["nll"] == ("" if method["nll"] is None else str(method["nll"]))


def test_the_page_needs_nothing_beside_itself_and_tells_what_the_text_tells(table):
    page = Page((table[1] / "report.html").read_text())
    assert all(load.startswith("data:") for load in page.loads)
    text = (table[1] / "report.md").read_text()
    for shown, written in zip(page.tables, tables(text), strict=True):
        assert [[" ".join(cell.split()) for cell in row] for row in shown] == written
    assert "![Learning curves](curves.svg)" in text
    assert (table[1] / "curves.svg").is_file()


def test_what_is_missing_is_noted(tmp_path):
    runs = write_table(tmp_path, seeds=2, rows=("kla", "cyclical"))
    write_run(tmp_path / "third", "kla", 2, finished=False)
    notes = make_report([*runs[:3], tmp_path / "third"]).parts[0].notes
    assert notes[0].startswith("The language model is missing: train one with model.latent_size=0")
    assert notes[1] == "cyclical KLA lacks seed 1, which other methods have: its means are over fewer runs."
    lines = {line.cells[0]: line.cells for line in make_report([*runs, tmp_path / "third"]).parts[0].lines}
    assert lines["KLA"][-2] == "2 of 3"


def test_runs_that_still_train_are_shown_without_figures(tmp_path):
    for row in ("lstm_lm", "mdr"):
        write_run(tmp_path / row, row, finished=row == "mdr")
    part = make_report([tmp_path / "lstm_lm", tmp_path / "mdr"]).parts[0]
    assert part.lines[1].cells == ["LSTM-LM", *["–"] * 12, "0 of 1", "–"]
    assert part.notes[0].startswith("The language model has not finished")


def test_methods_that_differ_in_an_option_alone_have_names_and_markup_is_text(tmp_path):
    for name, size in (("<b>a|b</b>", 4), ("other", 3)):
        write_run(tmp_path / name, "mdr", data={"path": "<i>$x$"}, model=SIZES | {"latent_size": size})
    runs = [tmp_path / "<b>a|b</b>", tmp_path / "other"]
    report = write(runs, tmp_path / "pages")
    assert [line.cells[0] for line in report.parts[0].lines] == [
        "MDR (model.latent_size=4)", "MDR (model.latent_size=3)",
    ]  # fmt: skip
    for name in ("report.html", "report.md", "curves.svg"):
        text = (tmp_path / "pages" / name).read_text()
        assert "<b>a" not in text
        assert "<i>" not in text
    assert "a&#124;b" in (tmp_path / "pages" / "report.md").read_text()


def test_sentences_are_reconstructed_where_they_are_given(tmp_path):
    runs = [tmp_path / row for row in ("lstm_lm", "mdr")]
    for run in runs:
        write_run(run, run.name, data={"path": "elsewhere"})
    assert not any(part.title == "Reconstructions" for part in make_report(runs).parts)
    part = next(part for part in make_report(runs, ["A man sleeps ."]).parts if part.title == "Reconstructions")
    assert part.header == ["", "MDR"]
    assert part.lines[0].cells[0] == "A man sleeps ."
