"""A run ends with exit code 0: gloo can abort a process whose model outlives its group."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

OPTIONS = [
    "pretrain.max_epochs=0", "train.max_epochs=1", "evaluation.samples=0", "evaluation.importance_samples=1",
    "data.train_size=17", "data.valid_size=4", "data.test_size=4",
]  # fmt: skip


@pytest.mark.long
def test_fifty_runs_in_a_row_end_well(tiny, tmp_path):
    runs = [[str(tiny), *OPTIONS, f"run={tmp_path / str(number)}"] for number in range(50)]
    (tmp_path / "plan.json").write_text(json.dumps([{"processes": 2, "runs": [run]} for run in runs]))
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "distributed" / "forked.py", tmp_path / "plan.json"],
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout) == [[0, 0]] * 50, done.stderr
    assert all((tmp_path / str(number) / "results.json").exists() for number in range(50))


def test_runs_that_stop_at_bad_numbers_end_as_they_should(tiny, tmp_path):
    """Their error, on its way out, holds on to the model; three of them in a row."""
    bad = ["optimizer.learning_rate=1e30", "optimizer.clip_norm=null"]
    runs = [[str(tiny), *OPTIONS, *bad, f"run={tmp_path / str(number)}"] for number in range(3)]
    (tmp_path / "plan.json").write_text(json.dumps([{"processes": 2, "runs": [run]} for run in runs]))
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "distributed" / "forked.py", tmp_path / "plan.json"],
        capture_output=True,
        text=True,
    )
    assert json.loads(done.stdout) == [[2, 2]] * 3, done.stderr
