"""The processes that Ray starts."""

import os

import pytest

from tests.sweep_folders import sweep_of

pytest.importorskip("ray", reason="no Ray: pip install -e '.[sweep]'")

from distvae.sweeps.ray.workers import enter_worker, torch_trainer


def test_a_worker_is_no_task_of_the_job_that_runs_ray(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    (tmp_path / "where").mkdir()
    enter_worker(str(tmp_path / "where"))
    assert os.getcwd() == str(tmp_path / "where")
    assert "SLURM_STEP_NUM_TASKS" not in os.environ


def test_each_process_of_a_trial_gets_its_resources(tmp_path):
    asked = sweep_of(tmp_path / "sweep", trial={"workers": 3, "cpus": 2, "gpus": 1})
    scaling = torch_trainer(asked, lambda settings: None, "name", []).scaling_config
    assert (scaling.num_workers, scaling.use_gpu, scaling.resources_per_worker) == (3, True, {"CPU": 2, "GPU": 1})
