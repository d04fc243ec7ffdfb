"""The same run by 1, 2 and 3 real processes, with and without gradient accumulation: the same numbers."""

import json
import subprocess
import sys

import pytest

from distvae.train import main
from tests.compare import assert_same_numbers, records
from tests.conftest import ROOT, fork, fork_each

# Soft free bits acting inside epochs too, and the one form of each kind: a bound on the global batch's mean, none.
METHODS = {
    "soft_free_bits": ["kl.every_steps=4"],
    "free_bits": ["kl.policy=linear", "kl.free_bits=dimension", "kl.target_rate=2"],
    "shards": [],
}


WAYS = [(3, 1), (2, 2)]  # processes and accumulation steps


@pytest.fixture(scope="module")
def methods(in_shards):
    return METHODS | {"shards": in_shards}


@pytest.fixture(scope="module")
def alone(tiny, methods, tmp_path_factory):
    """The runs by one process."""
    folder = tmp_path_factory.mktemp("alone")
    for method, settings in methods.items():
        assert main([str(tiny), *settings, f"run={folder / method}"]) == 0
    return folder


@pytest.fixture(scope="module")
def shared(tiny, methods, tmp_path_factory):
    """The runs by several processes, a run of two without sentences, and ``told``, what they printed."""
    folder = tmp_path_factory.mktemp("shared")
    runs = {
        (processes, accumulation): [
            [str(tiny), *settings, f"run={folder / f'{method}-{processes}-{accumulation}'}"]
            + [f"optimizer.accumulation_steps={accumulation}"]
            for method, settings in methods.items()
        ]
        for processes, accumulation in WAYS
    }
    groups = [{"processes": processes, "runs": runs[processes, n]} for processes, n in WAYS]
    groups.append({"processes": 2, "runs": [[str(tiny), f"run={folder / 'nowhere'}", "data.path=nowhere.txt"]]})
    codes, told = fork(folder, groups)
    assert codes == [*([0] * processes for processes, _ in WAYS), [2, 2]], told
    (folder / "told").write_text(told)
    return folder


@pytest.mark.parametrize(("processes", "accumulation"), WAYS)
@pytest.mark.parametrize("method", METHODS)
def test_ranks_and_accumulation_change_no_number(method, alone, shared, processes, accumulation):
    assert_same_numbers(alone / method, shared / f"{method}-{processes}-{accumulation}", world_size=processes)


@pytest.mark.parametrize("method", METHODS)
def test_the_compared_runs_move_gamma_and_train(alone, method):
    """What the comparison above rests on: weights that move, and decisions that are taken."""
    rows = records(alone / method)
    weights = [row["kl_weight"] for row in rows if row["stage"] == "train"]
    assert weights[0] in (0.5, 1.0)
    assert len(set(weights)) > 1
    assert rows[-1]["valid"]["re"]["mean"] < rows[0]["valid"]["re"]["mean"] - 5
    if method == "free_bits":  # some dimensions are held at their floor, so the objective stands above RE + γ·KL
        last = rows[-1]["train"]
        assert last["objective"] > last["re"] + last["kl"] + 0.01


def test_processes_that_would_train_alone_stop(tiny, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert main([str(tiny), f"run={run}"]) == 2
    told = capsys.readouterr().err
    assert "started 2 processes, but this one sees 1" in told
    assert "accelerate launch --multi_gpu --num_processes N" in told
    assert not run.exists()


def test_two_processes_tell_bad_input_once(shared):
    assert (shared / "told").read_text().count("distvae: ") == 1
    status = json.loads((shared / "nowhere" / "status.json").read_text())
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
    run = alone / "soft_free_bits"
    group = {"processes": 2, "program": "distvae.cli", "runs": [["evaluate", str(run), "--json"]]}
    ((first, second),) = fork_each(alone, [group])
    assert (first.returncode, second.returncode, second.stdout) == (0, 0, ""), first.stderr
    found, expected = json.loads(first.stdout), json.loads((run / "results.json").read_text())
    assert found["world_size"] == 2
    for name in ("re", "kl", "nll", "mutual_information"):
        assert found["scores"][name]["mean"] == pytest.approx(expected["scores"][name]["mean"], rel=1e-5, abs=1e-6)
