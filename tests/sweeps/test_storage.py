"""Sweep files, and the specification in a sweep folder."""

from dataclasses import replace

import pytest
import yaml

from distvae.config.keys import fields_with
from distvae.sweeps.specification import SweepConfig
from distvae.sweeps.storage import differences, dump_sweep, load_sweep, open_sweep
from distvae.system.errors import UserError
from distvae.system.roles import Role
from tests.conftest import ROOT
from tests.sweep_folders import BASE, LAMBDA, write_sweep


def test_a_dotted_key_under_set_can_be_given_on_the_command_line(ask, tmp_path):
    asked = ask("set.kl.multiplier=0.4", "set.seed=3", set={"kl.multiplier": 0.3, "kl.threshold": 0.2})
    kl = asked.config_of({}, tmp_path).kl
    assert (kl.policy.multiplier, kl.policy.threshold, kl.policy.anneal_epochs) == (0.4, 0.2, 3)
    assert asked.config_of({}, tmp_path).seed == 3


def test_a_sweep_without_a_folder_goes_to_runs(ask, tmp_path):
    assert ask(run=None).folder.as_posix() == "runs/asked"


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


def test_what_may_change_when_a_sweep_resumes():
    roles = Role.PLACE, Role.SOURCE, Role.EXTENT
    assert fields_with(SweepConfig, *roles) == {"base", "run", "max_concurrent", "finalists", "stop"}


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
