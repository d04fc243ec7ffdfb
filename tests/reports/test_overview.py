import pytest

from distvae.reports import overview
from distvae.reports.methods import gather
from tests.paper_folders import PAPER, write_run, write_table


@pytest.fixture(scope="module")
def methods(tmp_path_factory):
    return gather(write_table(tmp_path_factory.mktemp("overview")))


def test_the_summary_says_what_was_scored(methods):
    found = overview.summary(methods)
    assert found.startswith("5 runs. 200 test sentences, 2,000 tokens; vocabulary ")
    assert found.endswith("sentences fedcba9876543210; NLL from K = 500 importance samples.")


def test_one_seed_is_said_to_leave_out_an_error(methods):
    text = overview.about_differences(methods)
    assert text.endswith("With one seed, the errors do not include how much another seed would differ.")


def test_the_runs_say_how_they_ended_and_where(methods):
    rows = [line.cells for line in overview.runs(methods).lines]
    assert [row[0] for row in rows] == [str(method.runs[0].folder) for method in methods]
    assert rows[0][3:6] == ["16 epochs, converged", "–", "epoch 14"]
    assert rows[1][3:6] == ["–", "16 epochs, converged", "epoch 14"]
    assert rows[2][3:6] == ["from ae", "16 epochs, converged", "epoch 14"]
    assert rows[0][6:] == ["0.01", "1 process, a CPU; torch 2.13.0, Python 3.11.7", "0123456789ab"]


def test_a_bound_that_does_not_hold_is_said_loudly(methods, tmp_path, monkeypatch):
    assert overview.warnings(methods) == []
    monkeypatch.setitem(PAPER, "kla", (36.0, 0.02, 36.9, 0.0, 0))
    write_run(tmp_path / "kla", "kla")
    (warning,) = overview.warnings(gather([tmp_path / "kla"]))
    assert warning.startswith(f"WARNING {tmp_path}/kla: NLL exceeds −ELBO")
