"""The same run by 1, 2 and 3 real processes, with and without gradient accumulation: the same numbers."""

import json
import subprocess
import sys

import pytest

from distvae.train import main
from tests.compare import assert_same_numbers, records
from tests.conftest import ROOT, launch

# Soft free bits acting inside epochs too, and the one form of each kind: a bound on the global batch's mean, none.
METHODS = {
    "soft_free_bits": ["kl.every_steps=4"],
    "free_bits": ["kl.policy=linear", "kl.free_bits=dimension", "kl.target_rate=2"],
}


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    return request.param


@pytest.fixture(scope="module")
def alone(method, tiny, tmp_path_factory):
    run = tmp_path_factory.mktemp("alone") / method
    assert main([str(tiny), *METHODS[method], f"run={run}"]) == 0
    return run


@pytest.mark.parametrize(("processes", "accumulation"), [(2, 1), (3, 1), (2, 2)])
def test_ranks_and_accumulation_change_no_number(method, alone, tiny, tmp_path, processes, accumulation):
    run = tmp_path / "run"
    done = launch(
        str(tiny), *METHODS[method], f"run={run}", f"optimizer.accumulation_steps={accumulation}", processes=processes
    )
    assert done.returncode == 0, done.stderr

    assert_same_numbers(alone, run, world_size=processes)


def test_the_compared_runs_move_gamma_and_train(alone, method):
    """What the comparison above rests on: weights that move, and decisions that are taken."""
    rows = records(alone)
    weights = [row["kl_weight"] for row in rows if row["stage"] == "train"]
    assert weights[0] in (0.5, 1.0)
    assert len(set(weights)) > 1
    assert rows[-1]["valid"]["re"]["mean"] < rows[0]["valid"]["re"]["mean"] - 5
    if method == "free_bits":  # some dimensions are held at their floor, so the objective stands above RE + γ·KL
        last = rows[-1]["train"]
        assert last["objective"] > last["re"] + last["kl"] + 0.01


def test_processes_that_would_train_alone_stop(tiny, tmp_path):
    run = tmp_path / "run"
    done = launch(str(tiny), f"run={run}", SLURM_STEP_NUM_TASKS="2")
    assert done.returncode != 0
    assert "started 2 processes, but this one sees 1" in done.stderr
    assert "accelerate launch --multi_gpu --num_processes N" in done.stderr
    assert not run.exists()


def test_two_processes_tell_bad_input_once(tiny, tmp_path):
    run = tmp_path / "run"
    done = launch(str(tiny), f"run={run}", "data.path=nowhere.txt", processes=2)
    assert done.returncode != 0
    assert done.stderr.count("distvae: ") == 1
    status = json.loads((run / "status.json").read_text())
    assert status["state"] == "failed"
    assert "nowhere.txt" in status["reason"]


def test_the_program_exits_with_2_on_bad_input(tiny, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "distvae" / "train.py"), str(tiny), f"run={tmp_path / 'run'}", "kl.threshold=2"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_two_processes_evaluate_to_what_one_did(alone):
    done = launch("evaluate", str(alone), "--json", processes=2, program=["-m", "distvae.cli"])
    assert done.returncode == 0, done.stderr
    found, expected = json.loads(done.stdout), json.loads((alone / "results.json").read_text())
    assert found["world_size"] == 2
    for name in ("re", "kl", "nll", "mutual_information"):
        assert found["scores"][name]["mean"] == pytest.approx(expected["scores"][name]["mean"], rel=1e-5, abs=1e-6)
