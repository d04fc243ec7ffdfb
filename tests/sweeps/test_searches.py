"""Searches and schedulers with real Ray: Optuna, ASHA, two objectives, population-based training."""

import json

import pytest

from distvae.config.keys import flatten
from distvae.config.load import load_config
from distvae.sweeps.lineage import generations, history
from distvae.system.cores import usable_cores
from tests.compare import records
from tests.sweeps.programs import SET, run, trials, write

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray")]


def test_optuna_draws_from_a_space_with_conditions_and_asha_ends_trials(tmp_path, tiny):
    file = write(
        tmp_path,
        tiny,
        search="optuna",
        num_samples=4,
        space={
            "kl.policy": {"choice": ["soft_free_bits", "linear"]},
            "kl.target_rate": {"uniform": [0.2, 0.6], "when": {"kl.policy": "soft_free_bits"}},
            "optimizer.learning_rate": {"log_uniform": [0.01, 0.3]},
            "model.latent_size": {"integer": [2, 6]},
        },
        set=SET | {"train.max_epochs": 10},
        objective={"kl_tolerance": None},
        scheduler={"name": "asha", "grace_epochs": 1, "reduction_factor": 2},
        # One after the other, so that their pace does not decide who is compared with whom: if each is better than
        # those before it, none ends. This seed draws two that are worse.
        max_concurrent=1,
        seed=1,
    )
    run(file)
    found = trials(tmp_path / "sweep")
    assert {trial["state"] for trial in found} == {"finished", "stopped"}
    for trial in found:
        values = trial["values"]
        assert ("kl.target_rate" in values) == (values["kl.policy"] == "soft_free_bits")
        rows = records(tmp_path / "sweep" / "trials" / f"{trial['number']:04d}")
        # No trial ends during annealing (two epochs) or its grace epoch.
        assert max(row["epoch"] for row in rows if row["stage"] == "train") >= 3
        if trial["state"] == "stopped":
            assert "asha" in trial["reason"]


def test_two_objectives(tmp_path, tiny):
    file = write(
        tmp_path,
        tiny,
        search="optuna",
        num_samples=3,
        space={"kl.target_rate": {"uniform": [0.2, 0.6]}},
        objective={"second": "mutual_information"},
        finalists={"count": 2, "importance_samples": 10},
        trial={"cpus": 0.5},
    )
    run(file)
    slots = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["slots"]
    assert slots == min(3, 2 * usable_cores())
    assert [trial["state"] for trial in trials(tmp_path / "sweep")] == ["finished"] * 3
    assert list((tmp_path / "sweep" / "finalists").iterdir())


def test_population_based_training_goes_on_from_better_trials(tmp_path, tiny):
    space = {"kl.target_rate": {"uniform": [0.2, 0.6]}, "optimizer.learning_rate": {"choice": [0.01, 0.1]}}
    file = write(
        tmp_path,
        tiny,
        num_samples=4,
        space=space,
        set=SET | {"train.max_epochs": 10},
        objective={"kl_tolerance": None},
        scheduler={"name": "pbt", "grace_epochs": 2, "interval_epochs": 2, "quantile": 0.5},
    )
    folder = tmp_path / "sweep"
    run(file)
    found = trials(folder)
    assert [trial["state"] for trial in found] == ["finished"] * 4
    later = 0
    for trial in found:
        every = generations(folder, trial["number"])
        for generation in every:
            rows = history(folder, generation.run)
            steps = [row.step for row in rows]
            assert steps == sorted(set(steps))  # none twice, none missing
            if generation.parent is None:
                continue
            assert records(generation.run)  # it has trained with its own values
            later += 1
            assert rows[len(rows) - len(records(generation.run))].step - generation.step == 11  # an epoch's
            here, there = (dict(flatten(load_config(g / "config.yaml"))) for g in (generation.run, generation.parent))
            assert {key for key in here if here[key] != there[key]} <= {*space, "run", "resume", "pretrained"}
            assert {key: here[key] for key in space} == generation.values
            assert {row["stage"] for row in records(generation.run)} == {"train"}  # it pretrains nothing
            for key in ("kl.target_rate",):
                assert 0.2 <= here[key] <= 0.6
        assert history(folder, every[-1].run)[-1].epoch == 10
        assert trial["values"] == (every[-1].values or trial["values"])
    assert later > 0
