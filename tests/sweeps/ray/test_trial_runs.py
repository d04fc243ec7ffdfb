"""The run that a trial resumes."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from distvae.config.load import dump_config
from distvae.runs.checkpoints import list_checkpoints
from distvae.runs.records import read_metrics
from distvae.sweeps import lineage
from distvae.sweeps.lineage import Generation
from distvae.sweeps.pretraining import fingerprint, pretraining_of
from distvae.train import train
from distvae.training.caller import Caller
from tests.sweep_folders import pbt_sweep, sweep_of

pytest.importorskip("ray", reason="no Ray: pip install -e '.[sweep]'")

from distvae.sweeps.ray.trial_runs import choose_run, has_values, trial_config

NEW, RATE = {"kl.target_rate": 4.8}, {"kl.target_rate": 4.0}


@pytest.fixture
def population(tmp_path):
    """A sweep whose trial 1 continues trial 0 in 0001.1, and a function by which Tune hands over a checkpoint."""
    asked = pbt_sweep(tmp_path / "sweep")
    first = asked.folder / "trials" / "0001"
    (first / "config.yaml").write_text(dump_config(asked.config_of(RATE, first)))

    def hand(run: str, step: int, folder: Path = asked.folder) -> Path:
        path = folder / "tune" / f"trial_{run[:4]}" / f"checkpoint_{step:06d}"
        (path / "checkpoint").mkdir(parents=True)
        (path / "origin.json").write_text(json.dumps({"trial": int(run[:4]), "run": run, "step": step}))
        return path

    return asked, hand


def saves(run: Path, step: int = 80) -> None:
    (run / "checkpoints" / f"start-0001-step-{step:09d}-epoch-0008").mkdir(parents=True)


@pytest.mark.parametrize(
    "changed", [{"optimizer.learning_rate": 0.2}, {"optimizer.clip_norm": 2.0}, {"model.word_dropout": 0.4}]
)
def test_a_trial_that_goes_on_from_another_pretrains_nothing(tmp_path, tiny, changed):
    """Its weights come from the pretraining of the other trial, even if its own values would pretrain differently."""
    ((key, value),) = changed.items()
    asked = sweep_of(
        tmp_path / "sweep",
        base=str(tiny),
        space={key: {"choice": [0.1, value]}},
        set={"train.max_epochs": 3, "kl.anneal_epochs": 1, "evaluation.importance_samples": 1, "evaluation.samples": 0},
        num_samples=4,
        scheduler={"name": "pbt", "grace_epochs": 1, "quantile": 0.5},
        seed=1,
    )
    values = asked.points()[0]
    other = {key: value if values[key] != value else 0.1}
    pretraining = pretraining_of(asked.config_of(values, asked.folder), asked.folder)
    shared = frozenset([fingerprint(pretraining)])
    train(pretraining)
    first = asked.folder / "trials" / "0000"
    config = trial_config(asked, values, first, shared)
    assert config.pretrained == pretraining.run
    train(replace(config, train=replace(config.train, max_epochs=2)))
    handed = asked.folder / "tune" / "trial_0000" / "checkpoint_000001"
    shutil.copytree(list_checkpoints(first)[-1], handed / "checkpoint")
    (handed / "origin.json").write_text(json.dumps({"trial": 0, "run": "0000", "step": 22}))
    # The other trial, twice: first it continues, then it is restarted from its own checkpoint.
    for _ in range(2):
        run, there = choose_run(asked, 1, other, handed)
        config = trial_config(asked, other, run, shared)
        assert config.pretrained == pretraining.run
        resumed = config if there is None else replace(config, resume=str(there))
        train(resumed, caller=Caller(may_change=frozenset({"pretrained", key, "train.max_epochs"})))
        assert [(row.stage, row.epoch) for row in read_metrics(run)] == [("train", 3)]


def test_a_trial_goes_on_with_the_run_that_tune_knows_and_later_ones_go(population):
    """Tune's state may be older than the continuation."""
    asked, hand = population
    runs = asked.folder / "trials"
    saves(runs / "0001.1")
    assert choose_run(asked, 1, NEW, hand("0001.1", 60)) == (runs / "0001.1", None)
    assert (runs / "0001.1").exists()
    assert choose_run(asked, 1, RATE, hand("0001", 30)) == (runs / "0001", None)
    assert not (runs / "0001.1").exists()
    assert (runs / "0001" / "metrics.jsonl").exists()


def test_a_trial_of_which_tune_knows_nothing_begins_with_its_first_run(population):
    asked, _ = population
    runs = asked.folder / "trials"
    assert choose_run(asked, 1, RATE, None) == (runs / "0001", None)
    assert not (runs / "0001.1").exists()
    assert choose_run(asked, 2, RATE, None) == (runs / "0002", None)


def test_a_trial_whose_checkpoint_tune_names_in_vain_goes_on_with_the_run_of_its_values(population):
    asked, hand = population
    runs = asked.folder / "trials"
    gone = [hand("0001.1", 60), hand("0000", 40)]
    for path in gone:
        path.rename(path.with_name("away"))
        assert choose_run(asked, 1, NEW, path) == (runs / "0001.1", None)
    assert choose_run(asked, 1, RATE, gone[0]) == (runs / "0001", None)
    assert not (runs / "0001.1").exists()


def test_a_run_that_went_on_from_another_goes_on_itself_once_it_has_saved(population):
    asked, hand = population
    run = asked.folder / "trials" / "0001.1"
    donor = hand("0000", 40)
    later = lineage.Generation(run.with_name("0001.2"), run.with_name("0000"), 60, RATE)
    lineage.save_lineage(later)
    saves(run)
    assert choose_run(asked, 1, NEW, donor) == (run, None)
    assert not later.run.exists()
    # Another checkpoint, or other values, make another run.
    assert choose_run(asked, 1, NEW, hand("0000", 60))[0] == run.with_name("0001.2")
    assert choose_run(asked, 1, {"kl.target_rate": 5.0}, donor)[0] == run.with_name("0001.3")


def test_a_run_that_was_cut_short_before_it_saved_begins_anew(population):
    asked, hand = population
    run = asked.folder / "trials" / "0001.1"
    (run / "checkpoints").mkdir()
    (run / "starts").mkdir()
    donor = hand("0000", 40)
    assert choose_run(asked, 1, NEW, donor) == (run, donor / "checkpoint")
    assert [path.name for path in run.iterdir()] == ["lineage.json"]
    assert lineage.generations(asked.folder, 1)[-1] == lineage.Generation(run, run.with_name("0000"), 40, NEW)


def test_anothers_checkpoint_is_found_where_the_sweep_lies_now(population, tmp_path):
    asked, hand = population
    donor = hand("0000", 60)
    asked.folder.rename(tmp_path / "moved")
    moved = replace(asked, config=replace(asked.config, run=str(tmp_path / "moved")))
    run, checkpoint = choose_run(moved, 1, RATE, donor)
    assert run == tmp_path / "moved" / "trials" / "0001.2"
    assert checkpoint == tmp_path / "moved" / "tune" / "trial_0000" / "checkpoint_000060" / "checkpoint"


def test_a_trial_need_not_read_every_key_of_the_space(tmp_path):
    space = {
        "kl.policy": {"choice": ["linear", "soft_free_bits"]},
        "kl.multiplier": {"choice": [0.1, 0.2], "when": {"kl.policy": "soft_free_bits"}},
    }
    asked = sweep_of(tmp_path / "sweep", space=space)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(dump_config(asked.config_of({"kl.policy": "linear"}, run)))
    assert has_values(asked, Generation(run), {"kl.policy": "linear"})
    assert not has_values(asked, Generation(run), {"kl.policy": "soft_free_bits", "kl.multiplier": 0.1})
