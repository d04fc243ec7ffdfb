"""Sections with choices, by a section of two optimizers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from distvae.config.sections import Section, choices_of, declared, options_of, readers_of
from distvae.system.settings import RULES, NotNegative, Positive


@dataclass(frozen=True, config=RULES)
class Plain:
    name: Literal["plain"] = "plain"
    momentum: NotNegative = 0.0


@dataclass(frozen=True, config=RULES)
class Adaptive:
    name: Literal["adaptive"] = "adaptive"
    momentum: NotNegative = 0.0
    decay: NotNegative | None = None


@dataclass(frozen=True, config=RULES)
class Optimizer(Section):
    batch_size: Positive = 32
    method: Annotated[Plain | Adaptive, Field(discriminator="name", alias="name")] = Plain()


def parse(stored: bool = False, **keys) -> Optimizer:
    return TypeAdapter(Optimizer).validate_json(json.dumps(keys), context={"stored": stored})


def test_what_a_section_declares():
    (choice,) = choices_of(Optimizer)
    assert (choice.field, choice.key, choice.default) == ("method", "name", "plain")
    assert choice.kinds == {"plain": Plain, "adaptive": Adaptive}
    assert declared(Adaptive) == options_of(Optimizer) == {"momentum": 0.0, "decay": None}
    assert readers_of(Optimizer, "decay") == {"name": ("adaptive",)}
    assert readers_of(Optimizer, "momentum") == {"name": ("plain", "adaptive")}
    assert readers_of(Optimizer, "batch_size") == {}


@pytest.mark.parametrize("make", [parse, Optimizer])
def test_each_component_takes_its_options_from_the_sections_keys(make):
    assert make() == Optimizer()
    assert make(momentum=0.5).method == Plain(momentum=0.5)
    assert make(name="adaptive", decay=0.1).method == Adaptive(decay=0.1)
    assert make(name="adaptive", batch_size=2).batch_size == 2


def test_a_section_comes_back_from_its_keys():
    section = Optimizer(name="adaptive", decay=0.1)
    assert section.flat() == {"batch_size": 32, "name": "adaptive", "momentum": 0.0, "decay": 0.1}
    assert TypeAdapter(Optimizer).dump_python(section, mode="json") == section.flat()
    assert parse(**section.flat()) == section
    assert replace(section, batch_size=2) == Optimizer(name="adaptive", decay=0.1, batch_size=2)
    assert replace(section, method=Plain(momentum=0.3)) == Optimizer(momentum=0.3)


@pytest.mark.parametrize("make", [parse, Optimizer])
def test_an_option_of_another_component_is_refused(make):
    with pytest.raises(ValidationError) as caught:
        make(decay=0.1)
    (problem,) = caught.value.errors()
    assert problem["ctx"] == {"option": "decay", "value": 0.1, "default": None, "chosen": {"name": "plain"}}
    assert make(decay=None) == Optimizer()


def test_a_stored_section_may_have_options_that_nothing_reads():
    assert parse(stored=True, decay=0.1) == Optimizer()


@pytest.mark.parametrize(
    ("keys", "location"),
    [
        ({"name": "other"}, ("name",)),
        ({"name": 3}, ("name",)),
        ({"name": None}, ("name",)),
        ({"method": "adaptive"}, ("method",)),
        ({"momentun": 1.0}, ("momentun",)),
        ({"momentum": -1.0}, ("name", "plain", "momentum")),
        ({"batch_size": 0}, ("batch_size",)),
    ],
)
def test_what_is_wrong_is_located(keys, location):
    with pytest.raises(ValidationError) as caught:
        parse(**keys)
    assert [problem["loc"] for problem in caught.value.errors()] == [location]


def test_settings_have_names():
    with pytest.raises(ValidationError, match="Optimizer takes its settings by name"):
        Optimizer(32)
