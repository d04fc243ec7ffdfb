"""Fitting trials to nodes."""

import pytest

pytest.importorskip("ray", reason="no Ray: pip install -e '.[sweep]'")

from distvae.sweeps.ray.placement import fit, fitted, gpus_of, processes_on
from distvae.system.errors import UserError
from tests.sweep_folders import sweep_of


@pytest.mark.parametrize(
    ("cpus", "gpus", "places"),
    [(1, 0, 16), (0.5, 0, 32), (4, 1, 2), (1, 0.25, 8), (1, 1 / 3, 6), (1, 0.4, 4), (1, 0.6, 2), (8, 0.25, 2)],
)
def test_a_part_of_a_gpu_lies_on_one(cpus, gpus, places):
    assert processes_on({"CPU": 16.0, "GPU": 2.0, "memory": 1e9}, cpus, gpus) == places
    assert processes_on({"CPU": 16.0}, cpus, 0.5) == 0


def node(name: str, alive: bool = True, **resources: float) -> dict:
    return {"Alive": alive, "Resources": resources, "NodeManagerHostname": name}


def test_trials_are_fitted_to_the_living_nodes(tmp_path, monkeypatch):
    nodes = [node("b", CPU=4.0, GPU=2.0), node("a", CPU=8.0, GPU=1.0), node("c", alive=False, CPU=64.0)]
    monkeypatch.setattr("distvae.sweeps.ray.placement.ray.nodes", lambda: nodes)
    asked = sweep_of(tmp_path / "sweep")
    found = fit(asked)
    assert (found.gpus, found.nodes, found.total_cpus, found.total_gpus) == (1.0, ("a", "b"), 12.0, 3.0)
    assert found.slots == min(3, asked.trials)
    assert gpus_of(fitted(asked, found)) == 1.0


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        ({"cpus": 9}, "trial.cpus = 9: no node has more than 8 CPUs"),
        ({"gpus": 1}, "trial.gpus = 1: no node has more than 0 GPUs"),
        ({"workers": 9}, "trial.workers = 9: the nodes have room for 8 processes in all"),
    ],
)
def test_what_no_node_has_is_refused(tmp_path, monkeypatch, trial, message):
    monkeypatch.setattr("distvae.sweeps.ray.placement.ray.nodes", lambda: [node("a", CPU=8.0)])
    with pytest.raises(UserError, match=message):
        fit(sweep_of(tmp_path / "sweep", trial=trial))
