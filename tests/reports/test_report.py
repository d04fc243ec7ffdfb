from distvae.reports.report import make_report
from tests.paper_folders import write_run, write_table


def test_the_papers_rows_have_the_papers_report(tmp_path):
    runs = write_table(tmp_path, rows=("kla", "ae"))
    assert make_report(runs).title == "The paper's methods, compared"
    write_run(tmp_path / "lm", "lstm_lm")
    assert make_report([*runs, tmp_path / "lm"]).title == "The field's methods, compared"
