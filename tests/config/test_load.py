"""Load configs, with bases and overrides."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from distvae.config.keys import flatten
from distvae.config.kl import KLConfig
from distvae.config.load import dump_config, load_config, parse_config
from distvae.config.schema import (
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    SpeedConfig,
    StageConfig,
    TrackingConfig,
)
from distvae.config.yaml import ConfigError
from distvae.sweeps.storage import load_sweep
from tests.config.loading import KEYS, SECTIONS, as_yaml, refused

# -- What takes precedence ---------------------------------------------------------------------------------------------


def test_overrides_win_over_the_file_and_the_file_over_defaults(load):
    config = load("kl: {target_rate: 6, threshold: 0.2}\nseed: 3\n", "kl.target_rate=7", "model.latent_size=8")
    assert config == Config(
        run="runs/some/name",
        seed=3,
        kl=KLConfig(target_rate=7, threshold=0.2),
        model=ModelConfig(latent_size=8),
    )


def test_the_last_override_wins(load):
    assert load("seed: 1", "seed=2", "seed=3").seed == 3


def test_an_override_can_give_a_whole_section(load):
    assert load("kl: {threshold: 0.2}", "kl={target_rate: 7}").kl == KLConfig(target_rate=7)


@pytest.mark.parametrize("text", ["", "kl:\n", "kl: {}\n"])
def test_an_override_makes_the_section_that_the_file_lacks(load, text):
    assert load(text, "kl.target_rate=7").kl == KLConfig(target_rate=7)


def test_columns_are_a_list_in_yaml(load):
    assert load("", "data.path=x.csv", "data.columns=[premise, hypothesis]").data.columns == ("premise", "hypothesis")


def test_a_key_may_be_a_word_of_python(load):
    assert load("", "tracking.with=[wandb, mlflow]").tracking == TrackingConfig(trackers=("wandb", "mlflow"))
    assert "unknown key tracking.trackers" in str(refused(load, "", "tracking.trackers=[wandb]"))
    assert "tracking.with.0 = 'neptune'" in str(refused(load, "", "tracking.with=[neptune]"))
    assert dict(flatten(load("tracking: {with: [trackio]}")))["tracking.with"] == ("trackio",)


# -- Round trip --------------------------------------------------------------------------------------------------------
TEXT = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=12) | st.sampled_from(
    ["no", "null", "~", "1e3", "007", "12:30", "2024-02-03", "a: b", "#", "é"]
)

POSITIVE = st.integers(1, 10**6)

UNIT = st.floats(0, 1, exclude_min=True, exclude_max=True)

ANY_CONFIG = st.builds(
    Config,
    run=TEXT.filter(lambda text: text and not text.startswith("~")),
    seed=st.integers(0, 2**64),
    resume=st.sampled_from(["never", "auto"]),
    data=st.builds(
        DataConfig,
        path=TEXT.map("./".__add__),
        columns=st.none() | st.lists(TEXT, min_size=1, max_size=3).map(tuple),
        max_words=st.none() | POSITIVE,
        distinct=st.booleans(),
        unk=st.sampled_from(["classes", "single"]),
    ),
    model=st.builds(ModelConfig, latent_size=POSITIVE, init_range=UNIT, dropout=st.just(0.0) | UNIT),
    optimizer=st.builds(
        OptimizerConfig,
        learning_rate=st.floats(0, 1e38, exclude_min=True),
        clip_norm=st.none() | UNIT,
        mixed_precision=st.sampled_from([None, "no", "bf16"]),
    ),
    pretrain=st.builds(StageConfig, max_epochs=st.integers(0, 99)),
    train=st.builds(StageConfig, max_epochs=st.integers(1, 99)),
    kl=st.builds(KLConfig, target_rate=st.floats(0, 100), threshold=UNIT, multiplier=UNIT),
    evaluation=st.builds(
        EvaluationConfig, samples=st.integers(0, 9), mixed_precision=st.sampled_from([None, "no", "bf16"])
    ),
    speed=st.builds(
        SpeedConfig,
        output_layer=st.sampled_from(["fused", "plain"]),
        embedding_gradients=st.sampled_from(["auto", "rows", "dense"]),
        keep_memory=st.booleans(),
        cuda_graphs=st.booleans(),
    ),
    # `builds` reads signatures, in which the field has the name of its key.
    tracking=st.sampled_from([TrackingConfig(), TrackingConfig(trackers=("wandb", "mlflow"), project="café")]),
)


@settings(max_examples=30, deadline=None)
@given(config=ANY_CONFIG)
def test_a_dumped_config_loads_as_itself(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("dumped") / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config


def test_a_dump_holds_every_key_in_order(load):
    assert [key for key, _ in flatten(yaml.safe_load(dump_config(load())))] == ["format", *KEYS]


def test_a_dump_is_readable():
    assert "run: runs/café\n" in dump_config(Config(run="runs/café"))


# -- The run's folder --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "run"),
    [
        ("configs/demo.yaml", "runs/demo"),
        ("configs/snli/kla.yaml", "runs/snli/kla"),
        ("configs/snli/v1.5.yaml", "runs/snli/v1.5"),
        ("configs/old/configs/new/kla.yaml", "runs/new/kla"),
        ("elsewhere/kla.yaml", "runs/kla"),
        ("kla.yaml", "runs/kla"),
        ("configs.yaml", "runs/configs"),
    ],
)
@pytest.mark.parametrize("absolute", [True, False])
def test_the_run_folder_follows_the_configs_path(tmp_path, monkeypatch, path, run, absolute):
    monkeypatch.chdir(tmp_path)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).touch()
    assert load_config(tmp_path / path if absolute else path).run == run
    assert load_config(path, ["run=null"]).run == run


def test_a_run_folder_that_is_given_stays(load):
    assert load("run: runs/mine").run == "runs/mine"
    assert load("run: runs/mine", "run=runs/yours").run == "runs/yours"


def test_an_error_knows_the_run_folder(load):
    assert refused(load, "seed: -1").run == "runs/some/name"
    assert refused(load, "seed: -1\nrun: runs/mine").run == "runs/mine"
    assert refused(load, "run: runs/mine", "run=runs/yours", "sed=1").run == "runs/yours"
    assert refused(load, "train: {max_epochs: 0}", "pretrain.max_epochs=0", "run=mine").run == "mine"
    assert refused(load, "seed: [").run is None
    assert refused(load, "", "abc").run is None


# -- Bases -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Writes files, by their names without ``.yaml``, into a folder."""

    def write(**files: str) -> Path:
        for name, text in files.items():
            (tmp_path / f"{name}.yaml").write_text(text)
        return tmp_path

    return write


def test_a_file_wins_over_its_base_key_by_key(folder):
    place = folder(
        first="base: second.yaml\nkl: {target_rate: 3}\n",
        second="base: third.yaml\nkl: {policy: soft_free_bits, target_rate: 2}\nseed: 2\n",
        third="seed: 1\nmodel: {latent_size: 8}\ndata: {path: x.csv, columns: [a, b]}\n",
    )
    whole = "seed: 2\nmodel: {latent_size: 8}\ndata: {path: x.csv, columns: [a, b]}\n"
    whole += "kl: {policy: soft_free_bits, target_rate: 3}\n"
    folder(whole=whole)
    run = ["run=runs/same"]
    assert load_config(place / "first.yaml", run) == load_config(place / "whole.yaml", run)
    assert load_config(place / "first.yaml", ["seed=5"]).seed == 5


def test_a_base_lies_relative_to_the_file_that_names_it(folder, monkeypatch):
    place = folder(base="seed: 7\n")
    (place / "below").mkdir()
    (place / "below" / "own.yaml").write_text("base: ../base.yaml\n")
    (place / "absolute.yaml").write_text(f"base: {place}/base.yaml\n")
    monkeypatch.chdir(place / "below")
    assert load_config("own.yaml").seed == load_config("../absolute.yaml").seed == 7


def test_the_run_folder_is_never_the_bases(folder):
    place = folder(own="base: other.yaml\n", other="run: runs/mine\nseed: 3\n")
    assert load_config(place / "own.yaml").run == "runs/own"
    assert load_config(place / "other.yaml").run == "runs/mine"


def test_the_config_of_a_run_is_whole_and_has_no_base(folder):
    place = folder(own="base: other.yaml\n", other="seed: 3\n")
    config = load_config(place / "own.yaml")
    folder(kept=dump_config(config))
    (place / "other.yaml").unlink()
    assert load_config(place / "kept.yaml", whole=True) == config
    folder(kept=dump_config(config) + "base: own.yaml\n")
    with pytest.raises(ConfigError, match="unknown key base"):
        load_config(place / "kept.yaml", whole=True)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"own": "base: own.yaml"}, "own.yaml: base: .*own.yaml is based on itself"),
        (
            {"own": "base: a.yaml", "a": "base: b.yaml", "b": "base: ./a.yaml"},
            "b.yaml: base: .*a.yaml is based on itself",
        ),
        ({"own": "base: a.yaml"}, "own.yaml: base: .*a.yaml: cannot be read as a config: No such file"),
        ({"own": "base: 3"}, "own.yaml: base = 3: should be the path of a config"),
        ({"own": "base: [a.yaml]"}, "own.yaml: base = .*: should be the path of a config"),
        ({"own": "base: a.yaml", "a": "sed: 3"}, "own.yaml: unknown key sed; did you mean seed?"),
        ({"own": "base: a.yaml", "a": "seed: -3"}, "own.yaml: seed = -3"),
        ({"own": "base: a.yaml\nseed: -3", "a": ""}, "own.yaml: seed = -3"),
        ({"own": "base: a.yaml", "a": "- 1"}, "own.yaml: base: .*a.yaml: should hold keys and values"),
    ],
)
def test_a_bad_base_is_one_line_that_names_the_files(folder, files, says):
    place = folder(**files)
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(place / "own.yaml")
    assert len(str(caught.value).splitlines()) == 1


def test_a_sweep_takes_a_config_that_has_a_base(folder, monkeypatch):
    place = folder(
        sweep="base: own.yaml\nspace: {kl.target_rate: {grid: [2, 4]}}\n",
        own="base: other.yaml\nkl: {policy: soft_free_bits}\n",
        other="seed: 3\n",
    )
    monkeypatch.chdir(place)
    sweep = load_sweep("sweep.yaml")
    assert [sweep.config_of(sample, place).seed for sample in sweep.samples()] == [3, 3]


# -- Unknown keys ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS + SECTIONS)
def test_a_mistyped_key_gets_the_nearest(load, key):
    for mistyped in (key[:-2] + key[-1], key[:-1] + key[-1] * 2, key[:-2] + key[-1] + key[-2]):
        if mistyped in SECTIONS or mistyped == key:
            continue
        expected = f"unknown key {mistyped}; did you mean {key}?"
        assert str(refused(load, as_yaml(mistyped, 1))).endswith(": " + expected)
        assert str(refused(load, "", f"{mistyped}=1")).endswith(": " + expected)


@pytest.mark.parametrize(
    ("unknown", "near"),
    [
        ("opitmizer.batch_size", "unknown key opitmizer; did you mean optimizer?"),
        ("kll.target_rate", "unknown key kll; did you mean kl?"),
        ("batch_size", "unknown key batch_size; did you mean optimizer.batch_size?"),
        ("optimizer.patience", "unknown key optimizer.patience; did you mean "),
        ("zzzzzzzz", "unknown key zzzzzzzz"),
        ("zzzzzzzz.y", "unknown key zzzzzzzz"),
    ],
)
def test_a_key_in_no_section_is_unknown(load, unknown, near):
    assert near in str(refused(load, as_yaml(unknown, 1)))
    assert near in str(refused(load, "", f"{unknown}=1"))


def test_nothing_is_suggested_for_a_key_like_no_other(load):
    assert str(refused(load, "zzzzzzzz: 1")).endswith("name.yaml: unknown key zzzzzzzz")


@pytest.mark.parametrize("text", ["1: 2", "kl: {1: 2}", "kl: {true: 2}", "'': 1"])
def test_keys_are_names(load, text):
    refused(load, text)


# -- Files and overrides that cannot be read ---------------------------------------------------------------------------


@pytest.mark.parametrize("override", ["abc", "=3", "", "=", "kl.target_rate", "--seed"])
def test_an_override_is_a_key_and_a_value(load, override):
    assert str(refused(load, "", override)).startswith(f"{override!r} is not an override; write key=value")


def test_a_single_value_has_no_keys(load):
    rest = "target_rate is a single value and has no key x"
    assert str(refused(load, "kl: {target_rate: 3}", "kl.target_rate.x=3")) == f"'kl.target_rate.x=3': {rest}"
    assert "seed is a single value and has no key b" in str(refused(load, "seed: 1", "seed.b=3"))
    assert "kl.target_rate = {'x': 3}: " in str(refused(load, "", "kl.target_rate.x=3"))


@pytest.mark.parametrize("override", [".seed=1", "kl.=1", "kl..target_rate=1", ".=1", "a.b=1"])
def test_an_override_of_no_key_is_refused(load, override):
    assert "unknown key" in str(refused(load, "", override))


# -- Older versions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "given", "name"),
    [("some.txt", {}, "treebank"), ("some.txt", {"tokenizer": "words"}, "words"), ("captions", {}, "words")],
)
def test_a_run_of_an_older_version_has_its_tokenizer(tmp_path, path, given, name):
    tree = yaml.safe_load(dump_config(parse_config({"run": "some", "data": {"path": path}}, "test")))
    tree["data"].pop("tokenizer")
    tree["data"].update(given)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tree))
    assert load_config(file, whole=True).data.tokenizer.name == name
    assert load_config(file, stored=True).data.tokenizer.name == name
    assert load_config(file).data.tokenizer.name == given.get("tokenizer", "words")
