import math
import random
from dataclasses import replace

import pytest
import yaml

from distvae.config.kl import KLConfig
from distvae.config.load import load_config
from distvae.runs.records import read_metrics
from distvae.sweeps.checks import warn_of_repeats
from distvae.sweeps.pretraining import fingerprint, pretraining_of
from distvae.sweeps.progress import SweepProgress, Trial, load_progress, load_trials, save_progress, save_trials
from distvae.sweeps.ranking import Outcome, front, judged_epochs, outcome, rank, score, why_not_best
from distvae.sweeps.space import Seeded
from distvae.sweeps.specification import ObjectiveConfig
from distvae.sweeps.storage import differences, dump_sweep, load_sweep, open_sweep
from distvae.sweeps.sweep import Sweep
from distvae.system.errors import UserError
from tests.conftest import ROOT
from tests.sweep_folders import BASE, records, scores, write_run, write_sweep

LAMBDA = {"kl.target_rate": {"grid": [2, 4, 8]}}


@pytest.fixture
def ask(tmp_path):
    """Reads a sweep's file with this content."""

    def read(*overrides: str, base: str = BASE, **content) -> Sweep:
        (tmp_path / "base.yaml").write_text(base)
        tree = {"base": str(tmp_path / "base.yaml"), "run": str(tmp_path / "run"), "space": LAMBDA} | content
        (tmp_path / "asked.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        return load_sweep(tmp_path / "asked.yaml", overrides)

    return read


# -- Space -------------------------------------------------------------------------------------------------------------


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


def test_draws_fill_their_range_evenly(ask):
    asked = ask(
        space={
            "optimizer.learning_rate": {"log_uniform": [0.01, 1.0]},
            "model.dropout": {"uniform": [0.2, 0.4]},
            "kl.anneal_epochs": {"integer": [2, 5]},
            "kl.free_bits": {"choice": ["none", "batch"]},
        },
        num_samples=800,
    )
    points = asked.points()
    for key, low, high, change in (
        ("optimizer.learning_rate", 0.01, 1.0, math.log10),
        ("model.dropout", 0.2, 0.4, float),
    ):
        values = [change(values[key]) for values in points]
        assert change(low) <= min(values)
        assert max(values) <= change(high)
        middle = (change(low) + change(high)) / 2
        assert sum(value < middle for value in values) / 800 == pytest.approx(0.5, abs=0.08)
    assert {type(values["kl.anneal_epochs"]) for values in points} == {int}
    for key, kinds in (("kl.anneal_epochs", {2, 3, 4, 5}), ("kl.free_bits", {"none", "batch"})):
        found = [values[key] for values in points]
        assert set(found) == kinds
        assert all(found.count(kind) / 800 == pytest.approx(1 / len(kinds), abs=0.08) for kind in kinds)


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


def test_a_dotted_key_under_set_can_be_given_on_the_command_line(ask, tmp_path):
    asked = ask("set.kl.multiplier=0.4", "set.seed=3", set={"kl.multiplier": 0.3, "kl.threshold": 0.2})
    kl = asked.config_of({}, tmp_path).kl
    assert (kl.policy.multiplier, kl.policy.threshold, kl.policy.anneal_epochs) == (0.4, 0.2, 3)
    assert asked.config_of({}, tmp_path).seed == 3


def test_a_sweep_without_a_folder_goes_to_runs(ask, tmp_path):
    assert ask(run=None).folder.as_posix() == "runs/asked"


# -- What is refused ---------------------------------------------------------------------------------------------------

X = {"kl.multiplier": {"uniform": [0.1, 0.5]}}
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
                     "does not read it (policies constant, linear and cyclical would): give it `when: {kl.policy:"
                     " linear}`"),
    "not read": ({"space": {"kl.policy": {"choice": ["linear", "soft_free_bits"]}} | LAMBDA_DRAWN},
                 "space.kl.target_rate: a trial with kl.policy = linear does not read it (policy soft_free_bits would):"
                 " give it `when: {kl.policy: soft_free_bits}`"),
    "never read": ({"set": {"kl": {"policy": "linear", "target_rate": 4.0}}, "space": X},
                   "space.kl.multiplier: a trial does not read it (policy soft_free_bits would): leave it out"),
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
    "too many": ({"space": {"seed": {"grid": list(range(400))}, **X}, "num_samples": 251}, "100,400 trials"),
    "small K": ({"objective": {"importance_samples": 5}}, "objective.importance_samples = 5"),
    "part of a core": ({"trial": {"cpus": 1.5}}, "trial.cpus = 1.5: should be whole above 1"),
    "unknown metric": ({"objective": {"metric": "loss"}}, "objective.metric = 'loss'"),
    "second is first": ({"objective": {"second": "nll"}}, "objective.second = nll: should differ"),
    "second with a grid": ({"objective": {"second": "kl"}}, "objective.second needs search=optuna"),
    "second with asha": ({"objective": {"second": "kl"}, "search": "optuna", "space": X, "scheduler": {"name": "asha"}},
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
    "pbt by optuna": ({"space": X, "scheduler": PBT, "search": "optuna", "num_samples": 4}, "search should be random"),
    "pbt of processes": ({"space": X, "scheduler": PBT, "num_samples": 4, "trial": {"workers": 2}},
                         "trial.workers = 2"),
    "pbt of few at once": ({"space": X, "scheduler": PBT, "num_samples": 4, "max_concurrent": 3},
                           "scheduler=pbt with max_concurrent = 3: fewer than the 4 trials"),
    "pbt alone": ({"space": X, "scheduler": PBT}, "scheduler=pbt with one trial"),
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


def test_a_sweep_of_an_older_version_whose_trials_read_not_all_that_they_set_still_opens(ask, tmp_path):
    asked = ask()
    write_sweep(asked, [])
    path = asked.folder / "sweep.yaml"
    tree = yaml.safe_load(path.read_text()) | {"space": {"kl.policy": {"grid": ["linear", "soft_free_bits"]}} | LAMBDA}
    del tree["objective"]["require_alive"]
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    assert open_sweep(asked.folder).trials == 6
    assert open_sweep(asked.folder).config.objective.require_alive
    with pytest.raises(UserError, match="when"):
        load_sweep(path)


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
    assert warn_of_repeats(ask(space=X, search="optuna", num_samples=2)) is None


def test_the_example_of_the_docs_can_be_read(ask):
    text = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8").partition("```yaml")[2].partition("```")[0]
    tree = yaml.safe_load(text)
    asked = ask(space=tree["space"], set=tree["set"], num_samples=tree["num_samples"])
    assert asked.trials == 32
    assert asked.repeated() == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "base"),
        ("[1]", "should hold keys and values"),
        ("base: [", "is not YAML"),
        ("base: none.yaml\nspace: {seed: {grid: [0, 1]}}", "none.yaml: cannot be read"),
        ("base: base.yaml\nspace: 3", "space = 3"),
        ("base: base.yaml\nset: 3\nspace: {seed: {grid: [0, 1]}}", "set = 3"),
    ],
)
def test_a_file_that_is_no_sweeps_is_refused_in_a_line(tmp_path, monkeypatch, text, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "asked.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_sweep("asked.yaml")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_base_that_cannot_be_used_is_refused(ask):
    with pytest.raises(UserError, match="did you mean model"):
        ask(base="modle: {latent_size: 3}")


# -- Judgement ---------------------------------------------------------------------------------------------------------

NLL = ObjectiveConfig()


def came_to(
    nll: float = 20.0, kl: float = 4.0, rate: float | None = 4.0, mi: float = 3.0, units: int = 3, sentences: int = 1000
) -> Outcome:
    return Outcome(5, 0.5, rate, replace(scores(nll, kl, mi, units), sentences=sentences))


def test_a_kl_misses_by_what_it_is_beyond_its_tolerance():
    assert came_to(kl=4.375).violation(NLL) == 0
    assert came_to(kl=4.5).violation(NLL) == pytest.approx(0.1)
    assert came_to(kl=3.5).violation(NLL) == pytest.approx(0.1)
    assert came_to(kl=3.5).violation(replace(NLL, kl_tolerance=None)) == 0
    assert came_to(kl=0.5, rate=0.0).violation(NLL) == 0.5
    assert came_to(kl=0.5, rate=None, mi=0.5).violation(NLL) == 0  # without a λ there is nothing to be off


def test_a_latent_misses_by_the_information_that_it_lacks():
    assert came_to(mi=1.5).violation(NLL) == 0.5  # half of λ
    assert came_to(kl=6.0, rate=None, mi=1.0).violation(NLL) == 2.0  # half of the KL
    assert came_to(kl=0.02, rate=None, mi=0.0).violation(NLL) == 0.3
    assert came_to(kl=1.91, rate=2.0, mi=0.0, units=0).violation(NLL) == 1.0
    assert came_to(kl=9.0, mi=0.0).violation(NLL) == pytest.approx(4.6 + math.log(1000) / 2)
    assert came_to(mi=0.0, sentences=1).violation(NLL) == 0
    assert came_to(mi=0.0).violation(replace(NLL, require_alive=False)) == 0


def test_a_dead_latent_whose_kl_is_right_does_not_win():
    """Its KL is in its band, its NLL is the lowest, and it tells nothing."""
    found = {
        0: came_to(nll=25.0, kl=1.91, rate=2.0, mi=0.0, units=0),
        1: came_to(nll=28.1, kl=2.1, rate=2.0, mi=1.9),
        2: came_to(nll=28.4, kl=4.1, mi=3.5),
        3: came_to(nll=27.0, kl=4.0, mi=1.9),  # hollow, by little
        4: came_to(nll=26.0, kl=0.0, rate=None, mi=0.0),  # of a policy without a λ
        5: came_to(nll=28.2, kl=3.0, rate=None, mi=2.5),  # alive, and held to no λ
    }
    assert rank(NLL, found) == [1, 5, 2, 3, 4, 0]
    assert why_not_best(NLL, found) == (
        "trial 0 has a lower NLL (25.00), but its latent is dead (MI 0.00): it ranks behind"
    )
    assert rank(replace(NLL, require_alive=False), found)[0] == 0
    assert why_not_best(replace(NLL, require_alive=False), found) is None
    assert why_not_best(NLL, {1: found[1], 2: found[2]}) is None
    assert why_not_best(NLL, {}) is None
    high = ObjectiveConfig(metric="mutual_information")
    assert why_not_best(high, {0: came_to(mi=3.0), 1: came_to(mi=5.0, kl=9.0)}) == (
        "trial 1 has a higher MI (5.00), but its KL of 9.00 is off (λ = 4): it ranks behind"
    )


def test_a_trial_whose_kl_is_right_goes_before_any_whose_kl_is_not():
    found = {
        0: came_to(nll=10.0, kl=0.1),  # collapsed, and the best by NLL
        1: came_to(nll=25.0, kl=4.1),
        2: came_to(nll=24.0, kl=3.9),
        3: came_to(nll=30.0, kl=3.5),
        4: came_to(nll=24.0, kl=4.0),  # as good as 2: by number
        5: came_to(nll=11.0, kl=4.6),
    }
    assert rank(NLL, found) == [2, 4, 1, 3, 5, 0]
    assert rank(replace(NLL, kl_tolerance=None), found) == [0, 5, 2, 4, 1, 3]
    assert score(NLL, found[1]) == 25.0
    assert rank(NLL, {}) == []


@pytest.mark.parametrize(("metric", "second", "sign"), [("nll", "mutual_information", -1), ("kl", "ppl", 1)])
def test_a_trial_whose_kl_is_wrong_is_behind_by_its_second_metric_too(metric, second, sign):
    """Or its information, which is high where the KL is, would have it kept."""
    both = ObjectiveConfig(metric=metric, second=second)
    right, near, far = came_to(mi=3.0), came_to(mi=8.0, kl=9.0), came_to(mi=9.0, kl=12.0)
    assert score(both, right, second=True) == right.metrics[second]
    told = [sign * score(both, one, second=True) for one in (right, near, far)]
    assert told[0] < 1000 < told[1] < told[2]


def test_what_should_be_high_is_ranked_from_above():
    high = ObjectiveConfig(metric="mutual_information")
    found = {0: came_to(mi=2.0), 1: came_to(mi=3.0), 2: came_to(mi=9.0, kl=9.0), 3: came_to(mi=8.0, kl=8.0)}
    assert high.mode == "max"
    assert rank(high, found) == [1, 0, 3, 2]
    assert rank(replace(high, direction="min"), found) == [0, 1, 3, 2]


def test_the_front_is_what_brute_force_finds():
    both = ObjectiveConfig(second="mutual_information")
    chance = random.Random(0)
    for _ in range(50):
        found = {
            number: came_to(
                nll=chance.randint(20, 26), mi=chance.randint(0, 5), kl=chance.choice([3.9, 4.0, 4.1, 1.0, 9.0])
            )
            for number in chance.sample(range(100), 12)
        }
        right = {number: one for number, one in found.items() if one.kl_off(both) == 0 and one.latent == "alive"}

        def beats(a: Outcome, b: Outcome) -> bool:
            no_worse = a.nll <= b.nll and a.mutual_information >= b.mutual_information
            return no_worse and (a.nll, a.mutual_information) != (b.nll, b.mutual_information)

        expected = [n for n in sorted(right) if not any(beats(other, right[n]) for other in right.values())]
        assert front(both, found) == expected


def test_a_kl_that_is_wrong_does_not_buy_its_way_into_the_front():
    both = ObjectiveConfig(second="mutual_information")
    found = {0: came_to(nll=20, mi=3), 1: came_to(nll=19, mi=8, kl=9.0), 2: came_to(nll=18, mi=0, kl=0.0)}
    assert front(both, found) == [0]
    assert front(replace(both, kl_tolerance=None), found) == [1]
    assert front(replace(both, kl_tolerance=None, require_alive=False), found) == [1, 2]
    assert front(both, {1: found[1], 2: found[2]}) == [1]  # none is right: the nearest
    assert front(both, {}) == []


def test_an_outcome_is_of_the_epoch_that_was_kept(ask, tmp_path):
    config = ask().config_of({"kl.target_rate": 8}, tmp_path)
    write_run(tmp_path / "trial", scores(20.0, 4.0, 3.0, 2, gap=1.5), epochs=8, pretrain=2)
    rows = read_metrics(tmp_path / "trial")
    assert outcome(config, rows) == Outcome(7, 0.6, 8.0, scores(20.0, 4.0, 3.0, 2, gap=1.5))
    assert outcome(config, rows[:2]) is None  # pretraining alone
    assert outcome(config, []) is None
    assert outcome(config, rows[:3]).epoch == 1  # no best yet: the last
    assert outcome(config, rows[:4]).epoch == 2
    assert outcome(config, rows[:6]).epoch == 4
    linear = replace(config, kl=KLConfig(policy="linear"))
    assert outcome(linear, rows).target_rate is None
    assert outcome(replace(config, kl=KLConfig(policy="linear", free_bits="batch")), rows).target_rate == 4.0


def test_epochs_are_judged_from_the_end_of_annealing(ask, tmp_path):
    config = ask().config_of({}, tmp_path)
    last = scores(20.0, 4.0, 3.0, 2)
    rows = records(last, epochs=5, pretrain=9)[8:]
    assert [judged_epochs(config, rows[: n + 1]) for n in range(6)] == [0, 0, 0, 0, 1, 2]
    assert judged_epochs(config, []) == 0
    constant = replace(config, kl=KLConfig(policy="constant"))
    assert judged_epochs(constant, rows) == 5


# -- Pretraining -------------------------------------------------------------------------------------------------------


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
    asked = ask(space=X | {"model.dropout": {"choice": [0.1, 0.2]}}, search="optuna", num_samples=8)
    assert len(asked.pretrainings()) == 2
    assert (
        ask(space=X | {"model.dropout": {"uniform": [0.1, 0.2]}}, search="optuna", num_samples=8).pretrainings() == {}
    )


@pytest.mark.parametrize(
    ("key", "matters"),
    [
        ("kl.target_rate=7", False),
        ("train.max_epochs=9", False),
        ("checkpoint.keep=5", False),
        ("evaluation.importance_samples=7", False),
        ("run=elsewhere", False),
        ("seed=1", True),
        ("data.path=there.txt", True),
        ("data.train_size=70", True),
        ("model.hidden_size=7", True),
        ("optimizer.learning_rate=0.3", True),
        ("pretrain.max_epochs=3", True),
        ("plateau.patience=3", True),
        ("evaluation.seed=1", True),
    ],
)
def test_a_fingerprint_goes_by_what_matters_to_pretraining(tmp_path, key, matters):
    (tmp_path / "base.yaml").write_text(BASE)
    here, there = (load_config(tmp_path / "base.yaml", overrides) for overrides in ([], [key]))
    assert (fingerprint(here) != fingerprint(there)) == matters


# -- Files -------------------------------------------------------------------------------------------------------------


def test_a_sweep_comes_back_from_its_folder_wherever_that_is(ask, tmp_path):
    asked = ask(
        space={
            "kl.policy": {"choice": ["linear", "soft_free_bits"]},
            "optimizer.clip_norm": {"choice": [None, 5.0], "when": {"kl.policy": ["linear"]}},
            "kl.multiplier": {"log_uniform": [0.01, 0.5], "when": {"kl.policy": "soft_free_bits"}},
            "kl.anneal_epochs": {"integer": [1, 3]},
        },
        set={"model.dropout": 0.25},
        num_samples=7,
        stop={"hours": 2.5},
    )
    write_sweep(asked, [])
    asked.folder.rename(tmp_path / "moved")
    (tmp_path / "base.yaml").unlink()
    there = open_sweep(tmp_path / "moved")
    assert there.folder == tmp_path / "moved"
    assert there.points() == asked.points()
    assert replace(there.config, run=asked.config.run) == asked.config
    assert differences(there, asked) == differences(asked, there) == []
    assert dump_sweep(there)["base.yaml"] == dump_sweep(asked)["base.yaml"]


def test_what_makes_one_sweep_another_is_named(ask):
    there = ask()
    assert differences(there, ask(finalists={"count": 1}, stop={"hours": 1}, max_concurrent=2, run="else")) == []
    assert differences(there, ask(seed=4)) == ["seed (0 there, 4 here)"]
    (line,) = differences(there, ask(base=BASE.replace("latent_size: 4", "latent_size: 5")))
    assert line == "base: model.latent_size (4 there, 5 here)"


@pytest.mark.parametrize("missing", ["sweep.yaml", "base.yaml"])
def test_a_folder_that_is_no_sweeps_is_refused_in_a_line(ask, tmp_path, missing):
    write_sweep(ask(), [])
    (tmp_path / "run" / missing).unlink()
    with pytest.raises(UserError, match=missing):
        open_sweep(tmp_path / "run")


def test_trials_and_progress_come_back(tmp_path):
    assert load_trials(tmp_path) == []
    assert load_progress(tmp_path) == SweepProgress()
    trials = [
        Trial(0, {"a": 1, "b": 0.5, "c": "x", "d": None, "e": True}, "failed", "no good", "n1", 1e9, 2.5, 3),
        Trial(1, {}),
    ]
    save_trials(tmp_path, trials)
    progress = SweepProgress("interrupted", "SIGTERM", 1e9, 2, 3.0, 1.0, 1.5, 0.25, 6.0, 4, ("n1", "n2"))
    save_progress(tmp_path, progress)
    assert load_trials(tmp_path) == trials
    assert load_progress(tmp_path) == progress


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *(("trials.json", text) for text in ("", "[]", "{}", "3", '{"trials": 3}', '{"trials": [{}]}')),
        *(("sweep.json", text) for text in ("", "[]", "3", '{"state": "odd"}', '{"slots": "many"}')),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        (load_trials if name == "trials.json" else load_progress)(tmp_path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_chance_names_what_it_draws():
    assert Seeded(1, 2).uniform("a", 0.0, 1.0, False) == Seeded(1, 2).uniform("b", 0.0, 1.0, False)
    assert Seeded(1, 2).uniform("a", 0.0, 1.0, False) != Seeded(1, 3).uniform("a", 0.0, 1.0, False)
    assert 0.001 <= Seeded(0).uniform("a", 0.001, 0.002, True) <= 0.002
