"""The settings of a config: defaults, ranges, rules and roles."""

import dataclasses
import math
from pathlib import Path

import pytest

from distvae.config.keys import flatten, keys_with, known_keys
from distvae.config.kl import KLConfig
from distvae.config.load import load_config
from distvae.config.schema import AdamW, Config, ModelConfig, OptimizerConfig, PlateauConfig, SpeedConfig
from distvae.config.yaml import ConfigError
from distvae.sweeps.storage import load_sweep
from distvae.system.errors import UserError
from distvae.system.roles import Role
from tests.config.loading import SECTIONS, as_override, as_yaml, refused

CONFIGS = Path(__file__).parents[2] / "configs"

COMMITTED = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))

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
    ("data.subset", ""),
    ("data.split", []),
    ("data.split", ["a", "b", "c", "d"]),
    ("data.revision", 1),
    ("data.group", ["a"]),
    ("data.disjoint", 1),
    ("data.path", ["a", "b"]),
    ("model.embedding_size", 0),
    ("model.hidden_size", -512),
    ("model.latent_size", -1),
    ("model.latent_size", 2.5),
    ("model.pooling", "sum"),
    ("model.init_range", 0),
    ("model.embedding_init_range", -0.1),
    ("model.dropout", -0.1),
    ("model.dropout", 1),
    ("model.word_dropout", -0.1),
    ("model.word_dropout", 1.1),
    ("optimizer.name", "rmsprop"),
    ("optimizer.batch_size", 0),
    ("optimizer.batch_size", -32),
    ("optimizer.accumulation_steps", 0),
    ("optimizer.learning_rate", 0),
    ("optimizer.learning_rate", -0.5),
    ("optimizer.clip_norm", 0),
    ("optimizer.mixed_precision", "fp16"),
    ("communication.compression", "fp16"),
    ("communication.timeout_minutes", 0),
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
    ("tracking.with", "wandb"),
    ("tracking.project", ""),
]


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


@pytest.mark.parametrize(
    "given",
    [
        "data.distinct=true", "data.max_words=9", "data.columns=[text]", "data.subset=a", "data.revision=main",
        "data.split=[train]", "data.label=intent", "data.label=[a, b]", "data.group=author", "data.disjoint=true",
    ],
)  # fmt: skip
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
    key, _, value = given.partition("=")
    belongs = "belongs to communication.compression=powersgd, and communication.compression is"
    assert f": {key} = {value} {belongs} {compression}: leave it out" in message
    load("", given, "communication.compression=powersgd")


def test_weight_decay_belongs_to_adamw(load):
    message = str(refused(load, "optimizer: {weight_decay: 0.1}"))
    assert "optimizer.weight_decay = 0.1 belongs to optimizer.name=adamw, and optimizer.name is sgd: leave" in message
    assert "set optimizer.weight_decay=0.0, its default" in message
    assert load("optimizer: {weight_decay: 0.0}").optimizer == OptimizerConfig()
    assert load("optimizer: {name: adamw, weight_decay: 0.1}").optimizer.algorithm == AdamW(weight_decay=0.1)


def test_adamw_warms_up(load):
    adamw = load("optimizer: {name: adamw, warmup_steps: 4}").optimizer
    assert [adamw.warm_up(step) for step in (1, 2, 4, 5, 2**31)] == [0.25, 0.5, 1, 1, 1]
    assert load("optimizer: {name: adamw, warmup_steps: 0}").optimizer.warm_up(1) == 1
    assert load("").optimizer.warm_up(1) == 1


def test_the_field_of_a_choice_is_no_key(load):
    assert "unknown key optimizer.algorithm" in str(refused(load, "", "optimizer.algorithm=adamw"))


def test_a_section_of_choices_reports_all_its_problems(load):
    message = str(refused(load, "optimizer: {name: adamw, weight_decay: -1, batch_size: 0, momentum: 1}"))
    assert "optimizer.weight_decay = -1: " in message
    assert "optimizer.batch_size = 0: " in message
    assert "unknown key optimizer.momentum" in message


@pytest.mark.parametrize("key", ["run", "resume", "pretrained"])
def test_folders_may_be_in_a_home(load, monkeypatch, key):
    monkeypatch.setenv("HOME", "/home/me")
    assert getattr(load("", f"{key}=~/runs/a"), key) == "/home/me/runs/a"
    assert getattr(load("", f"{key}=runs/~a"), key) == "runs/~a"
    assert refused(load, "", "run=~/runs/a", "seed=no").run == "/home/me/runs/a"
    message = str(refused(load, "", f"{key}=~nobody-of-that-name/a"))
    assert message.endswith("no such user, so its home directory is unknown")


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


LANGUAGE_MODEL = "model: {latent_size: 0}\npretrain: {max_epochs: 0}\nkl: {policy: constant}\n"


def test_a_language_model_has_no_latent_variable(load):
    config = load(LANGUAGE_MODEL)
    assert config.language_model
    assert not config.autoencoder
    assert not load("").language_model


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("pretrain.max_epochs=3", "set pretrain.max_epochs=0"),
        ("model.pooling=max", "set model.pooling=last"),
        ("kl.policy=linear", "set 'kl={policy: constant}'"),
        ("inference.training=aggressive", "set inference.training=joint"),
        ("kl.policy=soft_free_bits", "set 'kl={policy: constant}'"),
        ("kl.weight=0.5", "set kl.weight=1.0"),
        ("kl.weight=0", "set kl.weight=1.0"),
        ("kl.free_bits=batch", "set kl.free_bits=none"),
        ("pretrained=runs/ae", "leave pretrained out"),
    ],
)
def test_what_needs_a_latent_variable_is_refused_without_one(load, override, advice):
    said = str(refused(load, LANGUAGE_MODEL, override))
    assert said.endswith(f"model.latent_size = 0 is a language model, which has no encoder and no KL: {advice}")


def test_all_that_a_language_model_has_to_set_is_said_at_once(load):
    said = str(refused(load, "", "model.latent_size=0"))
    assert said.endswith("set pretrain.max_epochs=0, set 'kl={policy: constant}'")


def test_a_language_model_does_not_read_the_options_of_a_latent_variable(load):
    unread = load(LANGUAGE_MODEL, "evaluation.importance_samples=7").unread
    assert unread["evaluation.importance_samples"] == "a model.latent_size above 0"
    assert {"pretrained", "pretrain.max_epochs", "kl.policy", "kl.target_rate", "evaluation.seed"} < unread.keys()
    assert "evaluation.importance_samples" not in load("").unread


def test_powersgd_cannot_leave_a_step_out(load):
    said = str(refused(load, "communication: {compression: powersgd}", "optimizer.on_nan=skip"))
    assert "optimizer.on_nan=skip does not go with communication.compression=powersgd" in said


PLACE = {
    "run", "resume", "cpu_threads", "data.cache", "data.workers", "optimizer.accumulation_steps",
    "evaluation.batch_size", "evaluation.memory_mb", "checkpoint.every_steps", "checkpoint.every_minutes",
    "checkpoint.keep", "communication.timeout_minutes", "speed.output_layer", "speed.embedding_gradients",
    "speed.keep_memory", "speed.cuda_graphs", "tracking.with", "tracking.project",
}  # fmt: skip

PRETRAINING = {
    "seed", "data.path", "data.subset", "data.revision", "data.split", "data.label", "data.group", "data.disjoint",
    "data.shard_size",
    "data.columns", "data.max_words", "data.train_size", "data.valid_size", "data.test_size",
    "data.distinct", "data.tokenizer", "data.min_count", "data.unk", "data.vocabulary_size", "data.tokenizer_file",
    "data.seed", "model.embedding_size", "model.hidden_size", "model.latent_size", "model.pooling", "model.posterior",
    "model.mean_scale", "model.variance_floor", "model.variance_dropout", "model.init_range",
    "model.embedding_init_range", "model.dropout", "model.word_dropout",
    "optimizer.name", "optimizer.weight_decay", "optimizer.warmup_steps", "optimizer.batch_size",
    "optimizer.learning_rate", "optimizer.clip_norm", "optimizer.mixed_precision", "optimizer.on_nan",
    "pretrain.max_epochs", "plateau.patience", "plateau.decay", "plateau.max_decays", "communication.compression",
    "communication.powersgd_rank", "communication.powersgd_start", "communication.local_sgd_steps", "evaluation.seed",
}  # fmt: skip


@pytest.mark.parametrize(
    ("roles", "keys"),
    [
        ([Role.PLACE], PLACE),
        ([Role.PLACE, Role.SOURCE], PLACE | {"data.path", "data.revision"}),
        (
            [Role.EXTENT],
            {
                "pretrain.max_epochs", "train.max_epochs", "optimizer.on_nan", "evaluation.importance_samples",
                "evaluation.validation_samples", "evaluation.samples",
            },
        ),
        ([Role.PER_PROCESS], {"cpu_threads", "data.path", "data.workers"}),
        ([Role.PER_RUN], {"seed", "pretrained"}),
        (
            [Role.MUTABLE],
            {
                "kl.target_rate", "kl.threshold", "kl.multiplier", "kl.dual_learning_rate", "kl.proportional",
                "kl.integral", "model.dropout", "model.word_dropout", "model.variance_dropout",
                "optimizer.learning_rate", "optimizer.clip_norm", "optimizer.weight_decay",
                "optimizer.warmup_steps",
            },
        ),
    ],
)  # fmt: skip
def test_roles_of_keys(roles, keys):
    assert keys_with(Config, *roles) == keys


def test_pretraining_depends_on_the_rest():
    sections = {key.rpartition(".")[0] for key in known_keys(Config)}
    settings = set(known_keys(Config)) - sections
    assert settings - keys_with(Config, Role.PLACE, Role.AFTER_PRETRAINING) == PRETRAINING
    assert {key for key, _ in flatten(Config())} < settings
