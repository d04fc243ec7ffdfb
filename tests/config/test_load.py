import dataclasses
import math
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from distvae.config.kl import KLConfig
from distvae.config.load import dump_config, flatten, load_config, with_precision
from distvae.config.schema import (
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    PlateauConfig,
    SpeedConfig,
    StageConfig,
)
from distvae.config.yaml import ConfigError
from distvae.sweeps.storage import load_sweep
from distvae.system.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
COMMITTED = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))
SECTIONS = [
    field.name for field in dataclasses.fields(Config) if dataclasses.is_dataclass(getattr(Config(), field.name))
]
KEYS = [key for key, _ in flatten(Config())]

OUT_OF_RANGE = [
    ("seed", -1),
    ("seed", 1.5),
    ("seed", "many"),
    ("resume", 1),
    ("data.max_words", 0),
    ("data.train_size", 0),
    ("data.valid_size", -5),
    ("data.test_size", 0),
    ("data.min_count", 0),
    ("data.unk", "none"),
    ("data.seed", -1),
    ("data.workers", 0),
    ("data.columns", "text"),
    ("data.distinct", 2),
    ("data.path", ["a", "b"]),
    ("model.embedding_size", 0),
    ("model.hidden_size", -512),
    ("model.latent_size", 0),
    ("model.latent_size", 2.5),
    ("model.init_range", 0),
    ("model.embedding_init_range", -0.1),
    ("model.dropout", -0.1),
    ("model.dropout", 1),
    ("model.word_dropout", -0.1),
    ("model.word_dropout", 1.1),
    ("optimizer.batch_size", 0),
    ("optimizer.batch_size", -32),
    ("optimizer.accumulation_steps", 0),
    ("optimizer.learning_rate", 0),
    ("optimizer.learning_rate", -0.5),
    ("optimizer.clip_norm", 0),
    ("optimizer.mixed_precision", "fp16"),
    ("pretrain.max_epochs", -1),
    ("train.max_epochs", -1),
    ("kl.policy", "cyclic"),
    ("kl.target_rate", -1),
    ("kl.target_rate", math.nan),
    ("kl.anneal_epochs", -1),
    ("kl.target_rate", -0.5),
    ("kl.target_rate", math.inf),
    ("kl.threshold", -0.01),
    ("kl.threshold", 1),
    ("kl.multiplier", 0),
    ("kl.multiplier", 1),
    ("kl.every_steps", 0),
    ("kl.free_bits", "word"),
    ("plateau.patience", 0),
    ("plateau.decay", 0),
    ("plateau.decay", 1),
    ("plateau.max_decays", 0),
    ("evaluation.batch_size", 0),
    ("evaluation.importance_samples", 0),
    ("evaluation.memory_mb", 0),
    ("evaluation.seed", -1),
    ("evaluation.samples", -1),
    ("evaluation.mixed_precision", "fp16"),
    ("speed.output_layer", "auto"),
    ("speed.embedding_gradients", "sparse"),
    ("speed.keep_memory", 1),
    ("speed.keep_memory", None),
    ("speed.cuda_graphs", "auto"),
]


@pytest.fixture
def load(tmp_path):
    """Writes ``configs/some/name.yaml`` and loads it."""
    path = tmp_path / "configs" / "some" / "name.yaml"
    path.parent.mkdir(parents=True)

    def load(text: str | bytes = "", *overrides: str) -> Config:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(path, overrides)

    return load


def refused(load, text: str | bytes = "", *overrides: str) -> ConfigError:
    """The error of a config that must be refused, checked to be one line."""
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    assert len(str(caught.value).splitlines()) == 1
    return caught.value


def as_yaml(key: str, value) -> str:
    """``a.b`` and a value as a YAML document."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return yaml.safe_dump(value)


def as_override(key: str, value) -> str:
    return f"{key}={yaml.safe_dump(value, default_flow_style=True).removesuffix('...' + chr(10)).strip()}"


# -- Defaults ----------------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_papers():
    config = Config()
    assert config.model == ModelConfig(
        embedding_size=128,
        hidden_size=512,
        latent_size=32,
        init_range=0.01,
        embedding_init_range=0.1,
        dropout=0.5,
        word_dropout=0.0,
    )
    assert config.optimizer == OptimizerConfig(
        batch_size=32, accumulation_steps=1, learning_rate=0.5, clip_norm=5.0, mixed_precision=None
    )
    assert config.kl == KLConfig(
        policy="soft_free_bits",
        weight=1.0,
        anneal_epochs=10,
        target_rate=4.0,
        threshold=0.05,
        multiplier=0.1,
        every_steps=None,
        free_bits="none",
    )
    assert config.plateau == PlateauConfig(patience=2, decay=0.5, max_decays=5)
    assert config.evaluation.importance_samples == 500
    assert config.evaluation.mixed_precision is None
    assert config.speed == SpeedConfig(
        output_layer="fused", embedding_gradients="auto", keep_memory=True, cuda_graphs=False
    )
    assert config.pretrain.max_epochs > 0
    assert config.train.max_epochs > config.kl.policy.warm_up


def test_an_empty_file_is_the_defaults(load):
    assert load("") == load("# nothing but a comment\n") == Config(run="runs/some/name")


@pytest.mark.parametrize("change", ["config.seed = 1", "config.kl.weight = 0.5", "config.data.path = 'x'"])
def test_a_config_is_frozen(change):
    with pytest.raises(dataclasses.FrozenInstanceError):
        exec(change, {"config": Config()})


def test_there_are_configs():
    assert COMMITTED


@pytest.mark.parametrize("name", COMMITTED)
def test_every_committed_config_loads(name, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)  # from which sweeps name their base
    config = load_sweep(CONFIGS / name).config if name.startswith("sweep/") else load_config(CONFIGS / name)
    assert config.run == f"runs/{name.removesuffix('.yaml')}"


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


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.path=a=b", "a=b"),
        ("data.path='no'", "no"),
        ("data.path=stanfordnlp/snli", "stanfordnlp/snli"),
        ("data.path=007", "007"),
        ("data.train_size=null", None),
        ("data.train_size=", None),
        ("data.distinct=false", False),
        ("optimizer.learning_rate=1e-3", 0.001),
        ("optimizer.clip_norm=null", None),
        ("kl.target_rate=6", 6.0),
        # YAML would drop what follows ` #` as a comment.
        ("data.path=runs/exp #1", "runs/exp #1"),
        ("data.path=#1", "#1"),
        ("data.path=it's #1", "it's #1"),
        ("data.path='runs/exp #1'", "runs/exp #1"),
        ('data.path="a # b"', "a # b"),
        ("data.path= a b ", "a b"),
    ],
)
def test_the_value_of_an_override_is_yaml(load, override, value):
    found = dict(flatten(load("data: {train_size: 9}", override)))[override.partition("=")[0]]
    assert found == value
    assert type(found) is type(value)


def test_columns_are_a_list_in_yaml(load):
    assert load("", "data.path=x.csv", "data.columns=[premise, hypothesis]").data.columns == ("premise", "hypothesis")


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


def test_flatten_gives_dotted_keys():
    assert list(flatten({"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": None})) == [
        ("a", 1), ("b.c", 2), ("b.d.e", 3), ("f", None),
    ]  # fmt: skip
    pairs = dict(flatten(Config()))
    assert (pairs["kl.target_rate"], pairs["seed"], pairs["data.columns"]) == (4.0, 0, None)


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


# -- Bad values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "value"), OUT_OF_RANGE)
def test_a_bad_value_is_one_line_that_names_key_and_value(load, tmp_path, key, value):
    start = f"{tmp_path / 'configs' / 'some' / 'name.yaml'}: {key} = {value!r}: "
    from_file = str(refused(load, as_yaml(key, value)))
    assert from_file.startswith(start)
    assert len(from_file) > len(start)
    assert str(refused(load, "", as_override(key, value))) == from_file


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("value", [3, "x", None, [1, 2]])
def test_a_section_must_hold_keys(load, section, value):
    assert f"{section} = {value!r}: " in str(refused(load, as_yaml(section, value)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kl.target_rate", 0),
        ("kl.threshold", 0),
        ("kl.anneal_epochs", 0),
        ("model.dropout", 0),
        ("model.word_dropout", 1),
        ("optimizer.batch_size", 1),
        ("pretrain.max_epochs", 0),
        ("evaluation.samples", 0),
    ],
)
def test_a_range_has_its_ends(load, key, value):
    assert dict(flatten(load(as_yaml(key, value))))[key] == value


@pytest.mark.parametrize("key", ["optimizer.batch_size", "optimizer.clip_norm", "seed", "kl.weight", "kl.every_steps"])
def test_yes_is_no_number(load, key):
    assert f"{key} = " in str(refused(load, "", f"{key}=yes"))


@pytest.mark.parametrize("written", ["no", "'no'"])
@pytest.mark.parametrize("section", ["optimizer", "evaluation"])
def test_no_is_a_precision(load, section, written):
    assert getattr(load(f"{section}: {{mixed_precision: {written}}}"), section).mixed_precision == "no"
    assert getattr(load("", f"{section}.mixed_precision={written}"), section).mixed_precision == "no"


@pytest.mark.parametrize("name", ["2024-02-03", "2024-02-30", "12:30", "2024-02-03_12-30"])
def test_a_run_folder_can_be_a_date_or_time(load, name):
    assert load(f"run: {name}").run == name
    assert load("", f"run={name}").run == name


def test_every_problem_is_named(load):
    message = str(refused(load, "seed: -3\nkl: {multiplier: 2, thresh: 1}\n"))
    assert "seed = -3: " in message
    assert "kl.multiplier = 2: " in message
    assert "unknown key kl.thresh; did you mean kl.threshold?" in message


def test_the_error_is_one_for_users():
    assert issubclass(ConfigError, UserError)
    assert issubclass(UserError, ValueError)


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


# -- Rules between fields ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["data.distinct=true", "data.max_words=9", "data.columns=[text]"])
def test_the_captions_take_no_selection(load, given):
    message = str(refused(load, "", given))
    assert given.partition("=")[0].removeprefix("data.") in message
    assert "data.path=captions" in message
    assert load("", given, "data.path=sentences.txt").data.path == "sentences.txt"


@pytest.mark.parametrize("given", ["data.min_count=3", "data.unk=single"])
def test_the_captions_words_are_all_known(load, given):
    assert given.partition("=")[0].removeprefix("data.") in str(refused(load, "", given))
    assert load("", given, "data.path=sentences.txt").data.path == "sentences.txt"


@pytest.mark.parametrize("given", ["communication.powersgd_rank=2", "communication.powersgd_start=9"])
@pytest.mark.parametrize("compression", ["none", "bf16"])
def test_powersgds_settings_belong_to_it(load, given, compression):
    message = str(refused(load, "", given, f"communication.compression={compression}"))
    assert message.endswith(f"{given.partition('=')[0]} belongs to compression powersgd, not to {compression}")
    load("", given, "communication.compression=powersgd")


@pytest.mark.parametrize("key", ["run", "resume", "pretrained"])
def test_folders_may_be_in_a_home(load, monkeypatch, key):
    monkeypatch.setenv("HOME", "/home/me")
    assert getattr(load("", f"{key}=~/runs/a"), key) == "/home/me/runs/a"
    assert getattr(load("", f"{key}=runs/~a"), key) == "runs/~a"
    assert refused(load, "", "run=~/runs/a", "seed=no").run == "/home/me/runs/a"
    message = str(refused(load, "", f"{key}=~nobody-of-that-name/a"))
    assert message.endswith("no such user, so its home directory is unknown")


@pytest.mark.parametrize("policy", ["constant", "linear"])
def test_every_steps_belongs_to_soft_free_bits(load, policy):
    message = str(refused(load, "kl: {every_steps: 5}", f"kl.policy={policy}"))
    assert "every_steps" in message
    assert policy in message
    assert load("kl: {every_steps: 5}").kl.policy.every_steps == 5


@pytest.mark.parametrize(
    ("policy", "given", "reader"),
    [
        ("linear", "threshold=0.9", "policy soft_free_bits"),
        ("linear", "multiplier=0.7", "policy soft_free_bits"),
        ("linear", "target_rate=2", "policy soft_free_bits or to free bits"),
        ("constant", "target_rate=2", "policy soft_free_bits or to free bits"),
        ("constant", "anneal_epochs=3", "policies linear and soft_free_bits"),
        ("soft_free_bits", "weight=0.5", "policies constant, linear and cyclical"),
        ("linear", "cycles=2", "policy cyclical"),
    ],
)
def test_an_option_belongs_to_the_policies_that_read_it(load, policy, given, reader):
    message = str(refused(load, f"kl: {{policy: {policy}}}", f"kl.{given}"))
    assert f"kl.{given.partition('=')[0]} = " in message
    assert f" belongs to {reader}, and kl.policy is {policy}: leave it out, or set kl." in message
    assert "\n" not in message
    # From the file, under another policy; and the message's own advice.
    stray = "kl: {" + given.replace("=", ": ") + "}"
    advice = re.search(r"set (kl\.\S+), its default", str(refused(load, stray, f"kl.policy={policy}"))).group(1)
    assert load(stray, f"kl.policy={policy}", advice).kl == KLConfig(policy=policy)


def test_free_bits_have_a_target_rate_under_any_policy(load):
    for policy in ("constant", "linear", "soft_free_bits"):
        kl = load("", f"kl.policy={policy}", "kl.free_bits=batch", "kl.target_rate=2").kl
        assert (kl.free_bits.target_rate, kl.rate) == (2.0, 2.0)
    assert load("").kl.rate == 4.0
    assert load("", "kl.policy=linear").kl.rate is None


def test_a_run_of_an_older_version_may_have_an_option_that_nothing_read(load, tmp_path):
    stray = dump_config(load("")).replace("policy: soft_free_bits", "policy: linear").replace("0.05", "0.9")
    assert "threshold" in str(refused(load, stray))
    (tmp_path / "config.yaml").write_text(stray)
    for options in ({"whole": True}, {"stored": True}):
        config = load_config(tmp_path / "config.yaml", **options)
        assert config.kl == KLConfig(policy="linear")
        assert config.unread["kl.threshold"] == "policy soft_free_bits"
        assert with_precision(config, "no").kl == config.kl


def test_there_must_be_something_to_train(load):
    message = str(refused(load, "", "pretrain.max_epochs=0", "train.max_epochs=0"))
    assert "pretrain.max_epochs" in message
    assert "train.max_epochs" in message
    assert load("", "pretrain.max_epochs=0").train.max_epochs > 0
    assert load("", "train.max_epochs=0").pretrain.max_epochs > 0


def test_a_given_pretraining_needs_a_stage_after_it(load):
    message = str(refused(load, "", "pretrained=runs/ae", "train.max_epochs=0"))
    assert "pretrained" in message
    assert "train.max_epochs" in message
    assert load("", "pretrained=runs/ae").pretrained == "runs/ae"


# -- Files and overrides that cannot be read ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["missing.yaml", "no/such/folder.yaml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    reason = "Is a directory" if name == "." else "No such file or directory"
    assert str(caught.value) == f"{path}: cannot be read as a config: {reason}"


@pytest.mark.parametrize("text", [b"run: caf\xe9\n", "seed: 1".encode("utf-16")])
def test_a_file_that_is_not_utf8_is_named(load, text):
    message = str(refused(load, text))
    assert "name.yaml: cannot be read as a config: " in message
    assert "utf-8" in message


def test_a_byte_order_mark_is_no_harm(load):
    assert load("\ufeffseed: 3").seed == 3


@pytest.mark.parametrize(
    "text",
    [
        "seed: [1",
        "seed: 1\n  kl: 3\n",
        "seed: {1",
        "\tseed: 1",
        "seed: @",
        "seed: *nowhere",
        "? [1, 2]\n: 3",
        "a\0: 1",
        "seed: !!python/object/apply:os.getcwd []",
    ],
)
def test_malformed_yaml_is_named_in_one_line(load, text):
    assert "name.yaml: is not YAML: " in str(refused(load, text))


@pytest.mark.parametrize("text", ["- seed", "seed", "3", "[]", "false"])
def test_a_file_must_hold_keys(load, text):
    assert "name.yaml: should hold keys and values" in str(refused(load, text))


@pytest.mark.parametrize("override", ["abc", "=3", "", "=", "kl.target_rate", "--seed"])
def test_an_override_is_a_key_and_a_value(load, override):
    assert str(refused(load, "", override)).startswith(f"{override!r} is not an override; write key=value")


@pytest.mark.parametrize(
    "value",
    [
        *("[1", "@x", "{a: 1", "*a", "'x", "a: b: c"),
        # Of these YAML would drop a part.
        *("[a, b] # c", "[a # b, c]", "{a: 1} # c", '"a" # b', "&a b", "--- a", "a\n# b", "# a\nb", "a\nb"),
    ],
)
def test_an_override_whose_value_is_not_yaml_is_named(load, value):
    assert str(refused(load, "", f"data.path={value}")) == f"{f'data.path={value}'!r}: the value is not YAML; quote it"


def test_a_number_with_a_comment_is_not_that_number(load):
    assert "kl.target_rate = '6 # six'" in str(refused(load, "", "kl.target_rate=6 # six"))


def test_a_single_value_has_no_keys(load):
    rest = "target_rate is a single value and has no key x"
    assert str(refused(load, "kl: {target_rate: 3}", "kl.target_rate.x=3")) == f"'kl.target_rate.x=3': {rest}"
    assert "seed is a single value and has no key b" in str(refused(load, "seed: 1", "seed.b=3"))
    assert "kl.target_rate = {'x': 3}: " in str(refused(load, "", "kl.target_rate.x=3"))


@pytest.mark.parametrize("override", [".seed=1", "kl.=1", "kl..target_rate=1", ".=1", "a.b=1"])
def test_an_override_of_no_key_is_refused(load, override):
    assert "unknown key" in str(refused(load, "", override))


def test_powersgd_cannot_leave_a_step_out(load):
    said = str(refused(load, "communication: {compression: powersgd}", "optimizer.on_nan=skip"))
    assert "optimizer.on_nan=skip does not go with communication.compression=powersgd" in said
