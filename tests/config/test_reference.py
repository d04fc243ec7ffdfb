"""What `distvae config` knows of each setting."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from distvae.config.keys import flatten, known_keys, option_defaults
from distvae.config.reference import SECTION, describe, type_of
from distvae.config.schema import Config
from distvae.system.errors import UserError
from distvae.system.settings import Folder, Positive


@pytest.fixture(scope="module")
def settings():
    return {setting.key: setting for setting in describe()}


def test_every_key_is_described(settings):
    assert set(settings) == set(known_keys(Config))


def test_every_setting_and_component_has_a_meaning(settings):
    for key, setting in settings.items():
        assert setting.meaning, key
        components = [meaning for meaning in setting.choices.values() if meaning is not None]
        assert len(components) in (0, len(setting.choices)), key
        assert all(components), key
        assert all(f"{choice}" in setting.type for choice in setting.choices), key


def test_defaults_are_those_of_an_empty_config(settings):
    described = {key: setting.default for key, setting in settings.items() if setting.type != SECTION}
    assert described == {**option_defaults(Config), **dict(flatten(Config())), "model.mean_scale": 0.6}


def test_a_meaning_is_the_comment_above_the_field(settings):
    assert settings["optimizer.accumulation_steps"].meaning == "Micro-batches of each rank in a step."
    assert settings["kl.threshold"].meaning.startswith("β: ")  # of a base class
    assert settings["kl"].meaning.startswith("What sets γ, ")
    assert settings["kl.free_bits"].choices["sentence"] == "max(λ, KL) of each sentence."


def test_components_that_differ_are_told_apart(settings):
    assert settings["kl.weight"].meaning == "constant: γ. linear: Where γ ends. cyclical: Where γ ends in each cycle."
    assert settings["model.mean_scale"].meaning.endswith(" Default 0.5.")
    assert settings["kl.anneal_by"].read_by == "kl.policy=linear or soft_free_bits"
    assert settings["kl.policy"].read_by == ""


def test_a_section_has_its_settings():
    assert [setting.key for setting in describe(["checkpoint"])] == [
        "checkpoint", "checkpoint.every_steps", "checkpoint.every_minutes", "checkpoint.keep",
    ]  # fmt: skip
    assert [setting.key for setting in describe(["train.max_epochs", "seed"])] == ["seed", "train.max_epochs"]


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("kl.taget_rate", "; did you mean kl.target_rate?"),
        ("target_rate", "; did you mean kl.target_rate?"),
        ("batch_size", "; did you mean optimizer.batch_size or evaluation.batch_size?"),
        ("modle", "; did you mean model?"),
        ("xyzzy", ""),
    ],
)
def test_a_wrong_key_names_the_nearest(key, hint):
    with pytest.raises(UserError) as error:
        describe([key])
    assert str(error.value) == f"unknown key {key}{hint}"


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (Positive | None, "whole number ≥ 1 or null"),
        (Annotated[float, Field(ge=0, lt=1)], "number ≥ 0 and < 1"),
        (Literal["a", "b", "c"] | None, "a, b or c or null"),
        (Folder, "path"),
        (tuple[str | None, ...], "list of (text or null)"),
        (bool, "true or false"),
    ],
)
def test_types_in_words(hint, text):
    assert type_of(hint) == text
