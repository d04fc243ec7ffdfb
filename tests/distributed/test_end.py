"""A run ends with exit code 0: gloo can abort a process whose model outlives its group."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

OPTIONS = ["pretrain.max_epochs=1", "train.max_epochs=1", "evaluation.samples=0", "evaluation.importance_samples=1"]


def end(tiny, tmp_path, runs):
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny.read_text())
    return subprocess.run(
        [sys.executable, ROOT / "tests" / "distributed" / "forked.py", str(runs), str(config), *OPTIONS],
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.mark.parametrize("runs", [5, pytest.param(50, marks=pytest.mark.long)])
def test_runs_in_a_row_end_well(tiny, tmp_path, runs):
    done = end(tiny, tmp_path, runs)
    assert done.stdout.endswith(f"{runs} runs, not ended with 0: []\n"), done.stdout + done.stderr
    assert len(list((tmp_path / "tiny.yaml.runs").iterdir())) == runs
