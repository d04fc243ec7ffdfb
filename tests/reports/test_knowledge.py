"""What z knows, in the report of runs: which probes count, and what the table makes of them."""

import csv
import json
import shutil
from dataclasses import replace

import pytest

from distvae import cli
from distvae.evaluation.scores import Estimate
from distvae.reports import knowledge
from distvae.reports.methods import gather
from distvae.reports.report import make_report, write
from distvae.runs.probing import Column, Probe, Probes
from distvae.runs.results import load_results
from distvae.system.errors import UserError
from distvae.system.files import sha256
from tests.paper_folders import write_run, write_table
from tests.reports.test_paper_report import Page, tables

ROWS = ("ae", "cyclical", "lstm_lm", "mdr")

# Accuracy from z of all labels, by row and seed.
KNOWN = {"ae": (0.9, 0.94), "cyclical": (0.5, 0.6), "mdr": (0.25, 0.25)}


def column(*probes, chance=0.25, **changes):
    return replace(Column(4, 1000, 200, Estimate(chance, 0.03), probes), **changes)


def probes_of(run, accuracy, names=("intent",), model="mine", **changes):
    """The probes of a run whose accuracy is that from all labels; from 100 it is half of it."""
    own = Probe(model, "z", {100: Estimate(accuracy / 2, 0.02), 1000: Estimate(accuracy, 0.03)}, None)
    means = replace(own, kind="mean", accuracy={1000: Estimate(0.99, 0.01)})
    other = replace(own, model="beside", accuracy={1000: Estimate(0.01, 0.01)})
    words = Probe(None, "words", {100: Estimate(0.7, 0.02), 1000: Estimate(0.97, 0.01)}, None)
    found = {name: column(other, own, means, words) for name in names}
    weights = {"beside": "0" * 64, model: sha256(run / "best" / "model.safetensors")}
    return replace(Probes("test", 0, weights, found, (), load_results(run).data), **changes)


def save(run, *given, **changes):
    probes_of(run, *given, **changes).save(run / "probes.json")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_table(folder, seeds=2, rows=ROWS)
    return folder


@pytest.fixture
def runs(written, tmp_path):
    """Runs of two seeds, by row and seed, which a test may change."""
    folder = shutil.copytree(written, tmp_path / "runs")
    return {(row, seed): folder / f"seed-{seed}" / row for seed in (0, 1) for row in ROWS}


def probe_all(runs, **changes):
    for (row, seed), run in runs.items():
        if row in KNOWN:
            save(run, KNOWN[row][seed], **changes)


def rows_of(report):
    part = next(part for part in report.parts if part.title == "What z knows")
    return {line.cells[0]: dict(zip(part.header, line.cells, strict=True)) for line in part.lines}, part


def test_each_method_with_a_latent_has_its_accuracies_beside_chance_and_words(runs):
    probe_all(runs)
    rows, part = rows_of(make_report(list(runs.values())))
    assert part.header == ["method", "MI", "intent", "intent, 100 labels"]
    assert list(rows) == ["cyclical KLA", "MDR", "AE", "chance", "bag of words"]
    assert rows["AE"]["intent"] == "92.0 ± 3.0 (2.8)"
    assert rows["cyclical KLA"]["intent"] == "55.0 ± 3.0 (7.1)"
    assert rows["cyclical KLA"]["intent, 100 labels"] == "27.5 ± 2.0 (3.5)"
    assert rows["MDR"]["intent"] == "25.0 ± 3.0 (0.0)"
    assert rows["chance"] == {"method": "chance", "MI": "–"} | dict.fromkeys(part.header[2:], "25.0 ± 3.0")
    assert (rows["bag of words"]["intent"], rows["bag of words"]["intent, 100 labels"]) == ("97.0 ± 1.0", "70.0 ± 2.0")
    assert "on test of linear probes that learn from z of 1,000 (all) or fewer labelled sentences" in part.text
    assert len(part.notes) == 1


def test_the_paper_has_the_same_table(tmp_path):
    runs = write_table(tmp_path / "runs", rows=("ae", "kla"))
    for run in runs:
        save(run, 0.5)
    report = make_report(runs)
    rows, part = rows_of(report)
    assert [title.title for title in report.parts[: report.main_parts]] == [
        "Table 1",
        part.title,
        "What the paper claims",
    ]
    assert rows["KLA"]["intent"] == "50.0 ± 3.0"
    assert report.data["probes"][1]["probe.intent"] == 0.5


def test_csv_and_json_have_every_figure(runs, tmp_path, capsys):
    probe_all(runs)
    folders = list(map(str, runs.values()))
    assert cli.main(["report", *folders, "--out", str(tmp_path), "--json"]) == 0
    found = {row["method"]: row for row in json.loads(capsys.readouterr().out)["methods"]}
    with (tmp_path / "report.csv").open(encoding="utf-8") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    expected = {
        "probe.intent": 0.55, "probe.intent_error": 0.03, "probe.intent_spread": 0.05 * 2**0.5,
        "probe.intent_chance": 0.25, "probe.intent_words": 0.97, "probe.intent.100": 0.275,
        "probe.intent.100_error": 0.02, "probe.intent.100_spread": 0.025 * 2**0.5, "probe.intent.100_words": 0.7,
    }  # fmt: skip
    own = {key: value for key, value in found["cyclical KLA"].items() if key.startswith("probe.")}
    assert own == pytest.approx(expected)
    assert {key: float(rows["cyclical KLA"][key]) for key in expected} == pytest.approx(expected)
    assert found["LSTM-LM"]["probe.intent"] is None
    assert rows["LSTM-LM"]["probe.intent"] == ""


def test_reports_without_probes_are_as_they_were(runs):
    report = make_report(list(runs.values()))
    assert [part.title for part in report.parts[: report.main_parts]] == ["Methods"]
    assert not any("probes" in note for part in report.parts for note in part.notes)
    assert not any(key.startswith("probe.") for row in report.data["methods"] for key in row)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (None, "are missing"),
        ({"models": {"mine": "0" * 64}}, "are of other weights"),
        ({"data": "0" * 16}, "are of other sentences"),
        ({"data": None}, "are of other sentences"),
        ({"split": "valid"}, "are of valid, not of test"),
        ({"seed": 3}, "are drawn by seed 3, not 0"),
        ({"columns": {}}, "are not of intent, or of other labels of that name"),
        ({"columns": {"intent": column(train=999)}}, "are not of intent, or of other labels of that name"),
    ],
)
def test_probes_that_do_not_count_are_named_and_not_shown(runs, changes, why):
    probe_all(runs)
    run = runs["cyclical", 1]
    (run / "probes.json").unlink()
    if changes is not None:
        save(run, 0.6, **changes)
    rows, part = rows_of(make_report(list(runs.values())))
    assert rows["cyclical KLA"]["intent"] == "50.0 ± 3.0"
    assert part.notes[1:] == (f"Without probes that count: {run}, whose probes {why}.",)
    assert part.text.endswith("Some runs have no probes that count; the pages list them.")


def test_probes_of_which_none_counts_are_named_too(runs):
    save(runs["mdr", 0], 0.5, seed=1)
    report = make_report(list(runs.values()))
    assert [part.title for part in report.parts[: report.main_parts]] == ["Methods"]
    notes = " ".join(report.parts[0].notes)
    assert f"Without probes that count: {runs['mdr', 0]}, whose probes are drawn by seed 1, not 0." in notes


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content | {"split": 3},
        lambda content: content["columns"]["intent"]["chance"].update(mean=1.5),
        lambda content: content["columns"]["intent"].update(train=50),
    ],
)
def test_damaged_probes_are_one_line(runs, damage):
    run = runs["mdr", 0]
    save(run, 0.5)
    content = json.loads((run / "probes.json").read_text())
    (run / "probes.json").write_text(json.dumps(damage(content) or content))
    with pytest.raises(UserError, match=r"probes\.json: is not the probes of a run: "):
        make_report(list(runs.values()))


def test_many_columns_leave_out_those_of_fewer_labels(runs):
    names = [f"<b>a|{i}</b>" for i in range(5)]
    probe_all(runs, names=names)
    report = make_report(list(runs.values()))
    assert rows_of(report)[1].header == ["method", "MI", *names]
    assert len(knowledge.gather(gather(list(runs.values()))).readings) == 10
    assert "probe.<b>a|4</b>.100" in report.data["methods"][0]


def test_names_of_columns_are_text(runs, tmp_path):
    name = "<b>a|b</b>"
    probe_all(runs, names=[name])
    write(list(runs.values()), tmp_path / "pages")
    text = (tmp_path / "pages" / "report.md").read_text()
    page = (tmp_path / "pages" / "report.html").read_text()
    assert "<b>a" not in text + page
    assert name in Page(page).tables[1][0]
    assert tables(text)[1][0][2] == name


def test_a_model_without_weights_to_compare_with_is_an_error(tmp_path):
    write_run(tmp_path / "run", "mdr")
    save(tmp_path / "run", 0.5)
    (tmp_path / "run" / "best" / "manifest.json").unlink()
    with pytest.raises(UserError, match="manifest"):
        make_report([tmp_path / "run"])
