"""The trials of a sweep, and their configs."""

from distvae.sweeps.pretraining import fingerprint, pretraining_of
from tests.sweep_folders import CHI, LAMBDA


def test_the_trials_of_grids_are_every_point_as_often_as_asked(ask):
    asked = ask(
        space=LAMBDA | {"model.dropout": {"grid": [0.0, 0.5]}, "kl.multiplier": {"log_uniform": [0.01, 0.5]}},
        num_samples=2,
    )
    points = asked.points()
    assert asked.trials == len(points) == 12
    pairs = [(values["kl.target_rate"], values["model.dropout"]) for values in points]
    assert pairs == [(rate, drop) for _ in range(2) for rate in (2, 4, 8) for drop in (0.0, 0.5)]  # in rounds
    assert len({values["kl.multiplier"] for values in points}) == 12
    assert list(points[0]) == list(asked.config.space)


def test_draws_are_set_by_the_seed_and_the_number_of_the_trial(ask):
    space = {"kl.multiplier": {"uniform": [0.1, 0.5]}}
    assert ask(space=space, num_samples=5).points() == ask(space=space, num_samples=9).points()[:5]
    assert ask(space=space, num_samples=5).points() != ask(space=space, num_samples=5, seed=1).points()


def test_a_key_with_a_condition_is_there_where_that_holds(ask):
    asked = ask(
        space={
            "kl.policy": {"grid": ["soft_free_bits", "linear", "constant"]},
            "kl.target_rate": {"grid": [2, 4], "when": {"kl.policy": "soft_free_bits"}},
            "kl.weight": {"uniform": [0.1, 0.9], "when": {"kl.policy": ["linear", "constant"]}},
            "kl.multiplier": {"choice": [0.1, 0.2], "when": {"kl.policy": "soft_free_bits", "seed": 0}},
            "kl.threshold": {"choice": [0.1, 0.2], "when": {"seed": 0, "kl.target_rate": 4}},
        }
    )
    points = asked.points()
    assert [(v["kl.policy"], v.get("kl.target_rate")) for v in points] == [
        ("soft_free_bits", 2), ("soft_free_bits", 4), ("linear", None), ("constant", None),
    ]  # fmt: skip
    assert ["kl.weight" in values for values in points] == [False, False, True, True]
    assert ["kl.multiplier" in values for values in points] == [True, True, False, False]
    assert ["kl.threshold" in values for values in points] == [False, True, False, False]


def test_a_trials_config_is_the_base_with_set_and_its_values(ask, tmp_path):
    asked = ask(set={"model.dropout": 0.25, "kl": {"multiplier": 0.3}}, trial={"cpus": 2})
    config = asked.config_of({"kl.target_rate": 8}, tmp_path / "here", tmp_path / "before")
    assert (config.run, config.pretrained) == (str(tmp_path / "here"), str(tmp_path / "before"))
    assert (config.kl.rate, config.kl.policy.multiplier, config.kl.policy.anneal_epochs) == (8.0, 0.3, 3)
    assert (config.model.dropout, config.model.latent_size, config.cpu_threads) == (0.25, 4, 2)
    assert (config.evaluation.validation_samples, config.evaluation.importance_samples) == (50, 50)
    assert ask(trial={"cpus": 0.25}).config_of({}, tmp_path / "there").cpu_threads == 1


def test_trials_share_what_pretrains_alike(ask):
    asked = ask(space=LAMBDA | {"model.dropout": {"grid": [0.1, 0.2]}})
    found = asked.pretrainings()
    assert len(found) == 2
    for name, config in found.items():
        assert fingerprint(config) == name
        assert config.run == str(asked.folder / "pretrained" / name)
        assert (config.pretrain.max_epochs, config.train.max_epochs) == (2, 0)
        assert config.evaluation.validation_samples == 0
    assert {config.model.dropout for config in found.values()} == {0.1, 0.2}
    for values in asked.points():
        assert fingerprint(pretraining_of(asked.config_of(values, asked.folder), asked.folder)) in found


def test_trials_that_pretrain_each_their_own_way_share_nothing(ask):
    assert ask(space={"model.dropout": {"grid": [0.1, 0.2]}}).pretrainings() == {}
    assert ask(space={"optimizer.learning_rate": {"uniform": [0.1, 0.2]}}, num_samples=4).pretrainings() == {}
    assert ask(set={"pretrain.max_epochs": 0}).pretrainings() == {}


def test_optunas_trials_share_what_can_be_known_beforehand(ask):
    asked = ask(space=CHI | {"model.dropout": {"choice": [0.1, 0.2]}}, search="optuna", num_samples=8)
    assert len(asked.pretrainings()) == 2
    assert (
        ask(space=CHI | {"model.dropout": {"uniform": [0.1, 0.2]}}, search="optuna", num_samples=8).pretrainings() == {}
    )
