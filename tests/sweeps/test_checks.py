"""What sweeps are refused or warned of."""

import pytest

from distvae.sweeps.checks import warn_of_repeats
from distvae.system.errors import UserError
from tests.sweep_folders import CHI

LAMBDA_DRAWN = {"kl.target_rate": {"choice": [2, 4]}}

PBT = {"name": "pbt", "grace_epochs": 2}

REFUSED = {
    "no space": ({"space": {}}, "space"),
    "unknown key": ({"spaces": {}}, "unknown key spaces; did you mean space?"),
    "unknown key of a section": ({"trial": {"cpu": 2}}, "unknown key trial.cpu; did you mean trial.cpus?"),
    "the training's": ({"train": {"max_epochs": 3}}, "train.max_epochs is a key of the training config: write set.tr"),
    "a section of the training's": ({"kl": {}}, "kl is a key of the training config: write set.kl"),
    "unknown key of a config": ({"space": {"kl.target": {"grid": [1, 2]}}}, "did you mean kl.target_rate"),
    "a section": ({"space": {"kl": {"grid": [1, 2]}}}, "kl"),
    "two kinds": ({"space": {"seed": {"grid": [1], "choice": [2]}}}, "should have one of"),
    "no kind": ({"space": {"seed": {}}}, "should have one of"),
    "empty grid": ({"space": {"seed": {"grid": []}}}, "space.seed.grid"),
    "backwards": ({"space": {"model.dropout": {"uniform": [0.5, 0.1]}}}, "the first should be below the second"),
    "log of nothing": ({"space": {"kl.multiplier": {"log_uniform": [0.0, 0.5]}}}, "should be above 0"),
    "twice": ({"space": {"seed": {"grid": [1, 1]}}}, "lists a value twice"),
    "out of range": ({"space": {"model.dropout": {"uniform": [0.5, 1.5]}}}, "model.dropout = 1.5"),
    "whole numbers": ({"space": {"seed": {"uniform": [0.5, 1.5]}}}, "seed = 0.5"),
    "not together": ({"space": {"kl.policy": {"choice": ["linear", "soft_free_bits"]},
                                "kl.weight": {"choice": [0.5, 1.0]}}},
                     "give it `when: {kl.policy: linear}`"),
    "not read": ({"space": {"kl.policy": {"choice": ["linear", "soft_free_bits"]}} | LAMBDA_DRAWN},
                 "space.kl.target_rate: a trial with kl.policy = linear does not read it (kl.policy=soft_free_bits"),
    "not read, what to do": ({"space": {"kl.policy": {"choice": ["linear", "soft_free_bits"]}} | LAMBDA_DRAWN},
                             "give it `when: {kl.policy: soft_free_bits}`"),
    "not read by any form": (
        {"set": {"kl.policy": "linear"},
         "space": {"kl.free_bits": {"choice": ["none", "batch"]}} | LAMBDA_DRAWN},
        "a trial with kl.free_bits = none does not read it",
    ),
    "no condition on a form": (
        {"set": {"kl.policy": "linear"},
         "space": {"kl.free_bits": {"choice": ["none", "batch"]}} | LAMBDA_DRAWN},
        "give it `when: {kl.free_bits: batch}`",
    ),
    "an option of another optimizer": (
        {"space": {"optimizer.name": {"choice": ["sgd", "adamw"]}, "optimizer.weight_decay": {"choice": [0.1, 0.2]}}},
        "space.optimizer.weight_decay: a trial with optimizer.name = sgd does not read it (optimizer.name=adamw would):"
        " give it `when: {optimizer.name: adamw}`",
    ),
    "never read": ({"set": {"kl": {"policy": "linear", "target_rate": 4.0}}, "space": CHI},
                   "space.kl.multiplier: a trial does not read it (kl.policy=soft_free_bits or from_above would): leave"
                   " it out"),
    "set and never read": ({"set": {"kl.policy": "linear", "kl.threshold": 0.2}, "space": {"seed": {"grid": [0, 1]}}},
                           "kl.threshold = 0.2: no trial reads it"),
    "seed of no draw": ({"set": {"data": {"path": "a.txt", "train_size": None, "valid_size": None, "test_size": None}},
                         "space": {"data.seed": {"grid": [0, 1]}}}, "space.data.seed: a trial does not read it"),
    "length of no pretraining": ({"set": {"pretrained": "runs/ae"}, "space": {"pretrain.max_epochs": {"grid": [1, 2]}}},
                                 "space.pretrain.max_epochs: a trial does not read it (a run without pretrained"),
    "the sweep's own": ({"set": {"resume": "never"}}, "resume: the sweep sets it itself"),
    "the run": ({"space": {"run": {"grid": ["a", "b"]}}}, "run: the sweep sets it itself"),
    "no NLL": ({"set": {"evaluation.validation_samples": 0}}, "evaluation.validation_samples: the sweep sets it"),
    "both": ({"set": {"kl.target_rate": 2}}, "kl.target_rate: is under both set and space"),
    "bad set": ({"set": {"kl.target_rat": 2}}, "did you mean kl.target_rate"),
    "no VAE": ({"set": {"train.max_epochs": 0}}, "train.max_epochs is 0"),
    "no VAE at a point": ({"space": {"kl.policy": {"grid": ["linear"]}, "kl.weight": {"grid": [0.5, 0.0]}}},
                          "a trial with kl.policy = linear, kl.weight = 0.0 is an autoencoder"),
    "too many": ({"space": {"seed": {"grid": list(range(400))}, **CHI}, "num_samples": 251}, "100,400 trials"),
    "small K": ({"objective": {"importance_samples": 5}}, "objective.importance_samples = 5"),
    "part of a core": ({"trial": {"cpus": 1.5}}, "trial.cpus = 1.5: should be whole above 1"),
    "unknown metric": ({"objective": {"metric": "loss"}}, "objective.metric = 'loss'"),
    "second is first": ({"objective": {"second": "nll"}}, "objective.second = nll: should differ"),
    "second with a grid": ({"objective": {"second": "kl"}}, "objective.second needs search=optuna"),
    "second with asha": ({"objective": {"second": "kl"}, "search": "optuna", "space": CHI,
                          "scheduler": {"name": "asha"}},
                         "objective.second needs search=optuna and scheduler.name=none"),
    "condition on nothing": ({"space": {"kl.multiplier": {"choice": [0.1], "when": {"kl.polic": "x"}}}},
                             "kl.polic is not a key of a training config"),
    "condition behind": ({"space": {"kl.multiplier": {"choice": [0.1], "when": {"seed": 1}},
                                    "seed": {"choice": [0, 1]}}}, "seed should come before kl.multiplier"),
    "condition never": ({"space": {"seed": {"choice": [0, 1]},
                                   "kl.multiplier": {"choice": [0.1], "when": {"seed": 7}}}}, "seed is never 7"),
    "condition of the base never": ({"space": {"kl.multiplier": {"choice": [0.1], "when": {"seed": 7}}}},
                                    "seed is never 7"),
    "grid on a draw": ({"space": {"seed": {"choice": [0, 1]}, "kl.multiplier": {"grid": [0.1], "when": {"seed": 1}}}},
                       "kl.multiplier is on a grid and seed is not"),
    "grid by optuna": ({"search": "optuna"}, "search=optuna draws its trials and takes no grid"),
    "again": ({"num_samples": 2}, "every key is on a grid, so trials would repeat"),
    "no time for asha": ({"scheduler": {"name": "asha", "grace_epochs": 5}}, "trials have 5 epochs after annealing"),
    "pbt of a size": ({"space": {"model.latent_size": {"choice": [2, 4]}}, "scheduler": PBT, "num_samples": 4},
                      "model.latent_size cannot change during a run"),
    "pbt on a grid": ({"scheduler": PBT}, "kl.target_rate has a grid or a condition"),
    "pbt by optuna": ({"space": CHI, "scheduler": PBT, "search": "optuna", "num_samples": 4},
                      "search should be random"),
    "pbt of processes": ({"space": CHI, "scheduler": PBT, "num_samples": 4, "trial": {"workers": 2}},
                         "trial.workers = 2"),
    "pbt of few at once": ({"space": CHI, "scheduler": PBT, "num_samples": 4, "max_concurrent": 3},
                           "scheduler=pbt with max_concurrent = 3: fewer than the 4 trials"),
    "pbt alone": ({"space": CHI, "scheduler": PBT}, "scheduler=pbt with one trial"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "said"), REFUSED.values(), ids=REFUSED)
def test_a_sweep_that_makes_no_sense_is_refused_in_a_line(ask, content, said):
    with pytest.raises(UserError) as caught:
        ask(**content)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_one_policy_alone_reads_may_be_in_the_base(ask):
    """Where the policy is swept, the base's settings of one are not another's."""
    space = {"kl.policy": {"grid": ["soft_free_bits", "linear"]}, "seed": {"grid": [0, 1]}}
    asked = ask(space=space, set={"kl.threshold": 0.2})
    rates = [asked.config_of(values, asked.folder).kl.rate for values in asked.points()]
    assert rates == [4, 4, None, None]


def test_trials_that_train_the_same_are_named(ask):
    policy = {"kl.policy": {"grid": ["soft_free_bits", "linear"]}}
    drawn = {"kl.every_steps": {"choice": [2, 3], "when": {"kl.policy": "soft_free_bits"}}}
    asked = ask(space=policy | drawn, set={"kl.target_rate": 4}, num_samples=4)
    repeated = asked.repeated()
    assert {number: repeated[number] for number in (3, 5, 7)} == dict.fromkeys((3, 5, 7), 1)  # linear, again
    assert len(repeated) == 3 + 2  # soft free bits have two values for four draws
    line = warn_of_repeats(asked)
    assert line.startswith("5 of 8 trials train exactly what an earlier one does: ")
    assert "3 (as 1)" in line
    assert warn_of_repeats(ask()) is None
    assert warn_of_repeats(ask(space=CHI, search="optuna", num_samples=2)) is None
