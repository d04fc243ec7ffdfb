"""A loss that is not a number on one rank is known to all, and moves no weight, under every engine."""

import json

import pytest
from safetensors.torch import load_file

from tests.compare import records
from tests.conftest import ROOT, fork, launch
from tests.distributed.test_engines import NAMES, TOLD

pytestmark = pytest.mark.cluster
PROGRAM = [ROOT / "tests" / "distributed" / "poisoned.py"]


@pytest.mark.parametrize("engine", ["cpu", "zero2", "zero3", "fsdp2"])
def test_a_step_that_is_not_finite_is_skipped_on_all_ranks(tiny, tmp_path, engine):
    run = tmp_path / "run"
    settings = [str(tiny), f"run={run}", "optimizer.on_nan=skip", "train.max_epochs=1", "model.posterior=batch_norm"]
    program = {"program": "tests.distributed.poisoned", "runs": [settings]}
    codes, told = fork(tmp_path, [{"processes": 2, "environment": TOLD[engine], **program}])
    assert codes == [[0, 0]], told
    assert f"by {NAMES[engine]} on CPU" in told
    assert [row["train"]["skipped"] for row in records(run)] == [0, 8, 0]
    assert all(value.isfinite().all() for value in load_file(run / "best" / "model.safetensors").values())


def test_it_stops_all_ranks_at_its_step(tiny, tmp_path):
    run = tmp_path / "run"
    done = launch(str(tiny), f"run={run}", processes=2, engine="cpu", program=PROGRAM)
    assert done.returncode != 0
    assert done.stderr.count("distvae: ") == 1
    assert "the loss or gradient of step 15, on sentences" in done.stderr
    assert "exitcode  : 2" in done.stderr
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
